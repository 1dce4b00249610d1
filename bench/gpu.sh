#!/usr/bin/env bash
# Checks and measures on a GPU in at most 13 minutes:
#
#   bench/gpu.sh prebuild PYTHON ARCH   without a GPU: the modules for that Python and, say, ARCH 90
#   bench/gpu.sh quick                  at most 8 minutes: smoke, targets, profiles
#   bench/gpu.sh rest                   at most 5 minutes: test suites, memcheck and racecheck
#
# Without arguments, quick and rest. Every stage has a deadline and writes as it goes, so that
# whatever ends a run leaves what was found until then. Results, log and profiles go to OUT where
# that is set and can be written, else to bench/results/<card>.
#
# Needs no network and no virtual environment: PYTHON (python3) has torch, Triton, torch-geometric,
# pytest, pytest-xdist and hypothesis; and setuptools, pybind11, ninja and nvcc where the modules
# were not built beforehand. DEVICE=cpu stands in for a GPU, to try the script; SHORTER divides all
# deadlines.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
device=${DEVICE:-cuda}
shorter=${SHORTER:-1}
cores=$(nproc)
export PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/triton}

# The GPU's architecture as nvcc counts and its name as folders have it: "90 h200".
probe='
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu.sh: no CUDA GPU: torch.cuda.is_available() is false")
name = torch.cuda.get_device_name().lower().removeprefix("nvidia ").split()[0]
print("%d%d" % torch.cuda.get_device_capability(), name)
'
# Whether the modules that are there run on this device.
one_edge='
import sys, torch, gatkernels
name, device = ("cpu", "cpu") if sys.argv[1] == "cpu" else ("cuda", "cuda")
graph = gatkernels.Graph.from_edge_index(torch.zeros(2, 1, dtype=torch.long, device=device), 1)
x = torch.ones(1, 1, 4, device=device)
assert bool((gatkernels.gat_attention(graph, x, x[..., 0], backend=name) == x).all())
'
# What a limit looks like on each kernel: time, bytes and share of memory, hits, warps, issue, waves.
metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed,lts__t_sector_hit_rate.pct
metrics+=,l1tex__t_sector_hit_rate.pct,sm__warps_active.avg.pct_of_peak_sustained_active
metrics+=,smsp__issue_active.avg.pct_of_peak_sustained_active,smsp__inst_executed.sum
metrics+=,launch__waves_per_multiprocessor,launch__registers_per_thread
metrics+=,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio

child=''
trap 'if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi; exit 143' INT TERM

# run SECONDS COMMAND...: with that deadline; goes on after a failure.
run() {
  local limit=$(($1 / shorter > 0 ? $1 / shorter : 1)) status=0
  shift
  echo "+ $*"
  timeout --kill-after=5 "$limit" "$@" &
  child=$!
  wait "$child" || status=$?
  child=''
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then echo "ended after $limit s: $*"; fi
  if [ "$status" != 0 ]; then
    echo "status $status: $*"
    failed=1
  fi
}

# A tool of the CUDA toolkit, wherever it is.
tool() {
  local place places=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  for place in /opt/nvidia/nsight-compute/*; do places+=:$place; done
  PATH=$places command -v "$1" || {
    echo "no $1 on PATH or below CUDA_HOME" >&2
    return 1
  }
}

modules() {
  if timeout 60 "$python" -c "$one_edge" "$device" 2>/dev/null; then
    echo "modules that were built beforehand"
  elif [ "$device" = cpu ]; then
    run 300 env GATKERNELS_CUDA=0 CXXFLAGS=-O1 "$python" setup.py build_ext --inplace
  else # both at once, so that the CUDA module does not wait for the CPU's
    run 150 env GATKERNELS_CUDA=1 GATKERNELS_CUDA_ARCHS="$arch" CXXFLAGS=-O1 \
      "$python" setup.py build_ext --inplace --parallel 2
  fi
}

smoke() {
  local how=(--backends cuda triton)
  if [ "$device" = cpu ]; then how=(--backends cpu --scale 0.02); fi
  run 60 "$python" -m gatkernels.bench.smoke --device "$device" "${how[@]}"
}

targets() {
  run 275 "$python" -m gatkernels bench --targets --device "$device" --seconds 0.2 \
    --deadline $((245 / shorter)) --out "$out" \
    --kinds operator hub small layer "layer compiled"
}

profile() {
  local ncu layer skip=4
  if [ "$device" = cpu ]; then
    run 60 "$python" -m gatkernels.bench.profiled gat --device cpu --backend cpu --scale 0.001
    return
  fi
  ncu=$(tool ncu) || {
    failed=1
    return
  }
  for layer in gat gatv2 dot; do # 2, 3 and 3 kernels a step; those of the third step
    if [ $layer != gat ]; then skip=6; fi
    run 30 "$ncu" --clock-control none --metrics "$metrics" --log-file "$out/ncu-$layer.txt" \
      --kernel-name 'regex:(^|::)(forward|backward|by_destination|by_source)$' \
      --launch-skip $skip --launch-count $((skip / 2)) \
      "$python" -m gatkernels.bench.profiled "$layer"
  done
}

tests() { # SECONDS BACKEND FILES...
  local limit=$1 backend=$2
  shift 2
  run "$limit" env GATKERNELS_TEST_DEVICE="$device" GATKERNELS_TEST_BACKEND="$backend" \
    OMP_NUM_THREADS=1 "$python" -m pytest -rs -vv -n "$((cores > 4 ? cores - 2 : cores))" "$@"
}

suite() {
  local own=cuda
  if [ "$device" = cpu ]; then own=cpu; fi
  tests 70 "$own" python_tests/test_{gat,gatv2,dot,node_scores,cuda,schedule,determinism,philox,ops}.py
}

# Workers compile what they meet into one cache.
triton() {
  if [ "$device" = cpu ]; then
    echo "nothing to compile for on a CPU"
    return
  fi
  tests 110 triton python_tests/test_{gat,gatv2,dot,node_scores,philox,determinism}.py
}

gpu() {
  run 50 "$python" -m pytest -rs -vv python_tests/test_gpu.py # alone: it needs the GPU's time
}

# On the tests that together reach every kernel; torch's cache of memory would hide accesses past the
# end of a tensor.
sanitize() {
  local sanitizer check
  if [ "$device" = cpu ]; then
    echo "nothing to sanitize on a CPU"
    return
  fi
  sanitizer=$(tool compute-sanitizer) || {
    failed=1
    return
  }
  for check in memcheck racecheck; do
    run 35 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 GATKERNELS_TEST_DEVICE=cuda \
      GATKERNELS_TEST_BACKEND=cuda "$sanitizer" --tool $check --error-exitcode 9 \
      --report-api-errors no "$python" -m pytest -q -k 'many_chunks and 16 or same_bits' \
      python_tests/test_{cuda,node_scores}.py
  done
}

prebuild() {
  local target=$1 arch=$2 check='
import importlib.util, sys, sysconfig
for name in ("_cpu", "_cuda"):
    path = "gatkernels/" + name + sysconfig.get_config_var("EXT_SUFFIX")
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    print("built and imported:", path)
'
  GATKERNELS_CUDA=1 GATKERNELS_CUDA_ARCHS=$arch "$target" setup.py build_ext --inplace
  "$target" -c "$check"
}

verdicts=(passed FAILED)

main() {
  local stage begin line table=() status=0
  for stage in "$@"; do
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

quick=(modules smoke targets profile)
rest=(modules suite triton gpu sanitize)
case ${1:-all} in
  prebuild)
    if [ $# != 3 ]; then
      echo "gpu.sh: prebuild PYTHON ARCH, such as prebuild python3.12 90" >&2
      exit 2
    fi
    prebuild "$2" "$3"
    exit
    ;;
  quick) stages=("${quick[@]}") ;;
  rest) stages=("${rest[@]}") ;;
  all) stages=("${quick[@]}" "${rest[@]:1}") ;;
  *)
    echo "gpu.sh: no '$1', but prebuild, quick and rest" >&2
    exit 2
    ;;
esac
arch='' card=cpu
if [ "$device" != cpu ]; then
  found=$("$python" -c "$probe")
  arch=${found% *} card=${found#* }
fi
out=bench/results/$card
if [ "$device" = cpu ]; then out=runs/gpu-cpu; fi
if [ -n "${OUT:-}" ] && mkdir -p "$OUT" && [ -w "$OUT" ]; then out=$OUT; fi
mkdir -p "$out"
exec > >(tee -a "$out/gpu.log") 2>&1
main "${stages[@]}"
