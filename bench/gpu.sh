#!/usr/bin/env bash
# All there is to check and measure on a GPU, in stages, which arguments choose:
#
#   bench/gpu.sh [build] [verify] [suite] [sanitize] [targets] [bench]
#
# Needs no network and no virtual environment: PYTHON (python3) has torch, Triton, setuptools,
# pybind11, ninja, pytest, pytest-benchmark and hypothesis; with pytest-xdist the suite takes less
# time. The log and the results go to OUT where that can be written, else to runs/gpu. LIMIT is the
# most seconds a command may take (no limit).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
limit=${LIMIT:-0}
all=(build verify suite sanitize targets bench)
stages=("$@")
[ $# -gt 0 ] || stages=("${all[@]}")

# The GPU's architecture as nvcc counts and its name as files have it: "90 h200".
probe='
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu.sh: no CUDA GPU: torch.cuda.is_available() is false")
name = torch.cuda.get_device_name().lower().removeprefix("nvidia ").replace(" ", "-")
print("%d%d" % torch.cuda.get_device_capability(), name)
'

verdicts=(passed FAILED)

# A command of a stage, which goes on after a failure and fails in the end.
run() {
  echo "+ $*"
  timeout "$limit" "$@" || {
    echo "status $?: $*"
    failed=1
  }
}

build() {
  run env GATKERNELS_CUDA=1 GATKERNELS_CUDA_ARCHS="$arch" "$python" setup.py build_ext --inplace
  run "$python" -m gatkernels info
}

verify() {
  run "$python" -m gatkernels verify --device cuda --backend cuda triton reference
}

suite() {
  local backend workers=()
  if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n auto --maxprocesses 12); fi
  for backend in cuda triton; do
    run env GATKERNELS_TEST_DEVICE=cuda GATKERNELS_TEST_BACKEND=$backend OMP_NUM_THREADS=1 \
      "$python" -m pytest -rs "${workers[@]}" \
      python_tests/test_{cuda,gat,gatv2,determinism,philox,ops}.py
  done
  run "$python" -m pytest -rs python_tests/test_gpu.py # alone: it needs the GPU's memory and time
}

sanitize() {
  local sanitizer check
  sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin && command -v compute-sanitizer) || {
    echo "no compute-sanitizer on PATH or below CUDA_HOME"
    failed=1
    return
  }
  # torch's cache of memory hides accesses past the end of a tensor
  for check in "memcheck cuda" "racecheck cuda" "memcheck triton"; do
    run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "${check% *}" --error-exitcode 9 \
      --report-api-errors no "$python" -m gatkernels verify --device cuda --backend "${check#* }"
  done
}

targets() {
  run "$python" -m gatkernels bench --targets --device cuda --out "$out/$gpu-targets"
}

bench() {
  run "$python" -m gatkernels bench --device cuda --out "$out/$gpu"
}

main() {
  local stage begin line table=() status=0
  for stage in "${stages[@]}"; do
    printf '\n== %s ==\n' "$stage"
    failed=0 begin=$SECONDS
    "$stage"
    printf -v line '%-9s %5d s  %s' "$stage" $((SECONDS - begin)) "${verdicts[failed]}"
    echo "$line"
    table+=("$line")
    status=$((status | failed))
  done
  printf '%s\n' "" "${table[@]}"
  return "$status"
}

for stage in "${stages[@]}"; do
  case " ${all[*]} " in
    *" $stage "*) ;;
    *)
      echo "gpu.sh: no stage '$stage', but ${all[*]}" >&2
      exit 2
      ;;
  esac
done
found=$("$python" -c "$probe")
arch=${found% *} gpu=${found#* } out=runs/gpu
if [ -n "${OUT:-}" ] && mkdir -p "$OUT" && [ -w "$OUT" ]; then out=$OUT; fi
mkdir -p "$out"
main 2>&1 | tee -a "$out/gpu.log"
