"""Peak memory of one forward + backward, above the inputs, in a fresh process per peer.

Run as `python -m gatkernels.bench.memory CASE PEER [THREADS]`, it prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gatkernels.bench.graphs import CASES, tiny
from gatkernels.bench.peers import find

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """`bytes` above what was resident before the step, or None and the reason."""

    bytes: int | None
    reason: str = ""


def peak_memory(case: str, peer: str, threads: int, timeout: float = 900.0) -> Peak:
    """Measure in a subprocess; `peer` is what `peers.address` gives."""
    command = [sys.executable, "-m", "gatkernels.bench.memory", case, peer, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Peak(None, f"no result in {timeout:.0f} s")
    if done.returncode == -signal.SIGKILL or "can't allocate memory" in done.stderr:
        return Peak(None, "OOM")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        errors = done.stderr.strip().splitlines()
        return Peak(None, errors[-1] if errors else f"exit status {done.returncode}")
    return Peak(**json.loads(lines[-1]))


def resident() -> int:
    return _status("VmRSS")


def highest() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in {STATUS}")
    return int(found[1]) * 1024


def forget_peak() -> bool:
    """Set the peak back to what is resident now; False where the system forbids it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measure(case_name: str, peer_name: str) -> Peak:
    """Warm up on a tiny graph, touch the inputs, then watch one step."""
    if not STATUS.exists():
        return Peak(None, "peak memory is read from /proc, which this system lacks")
    peer = find(peer_name)
    if reason := peer.unavailable():
        return Peak(None, reason)
    warm = peer.prepare(tiny())
    for _ in range(2):
        warm.forward()
        warm.backward()
    step = peer.prepare(CASES[case_name]())
    step.grad_out.sum()
    gc.collect()
    if not forget_peak():
        return Peak(None, "/proc/self/clear_refs cannot be written, so the peak cannot be reset")
    before = resident()
    out = step.forward()
    gradients = step.backward()
    peak = highest() - before
    del out, gradients
    return Peak(max(peak, 0))


def main(arguments: list[str]) -> None:
    case, peer, *threads = arguments
    if threads:
        torch.set_num_threads(int(threads[0]))
    result = measure(case, peer)
    print(json.dumps({"bytes": result.bytes, "reason": result.reason}))


if __name__ == "__main__":
    main(sys.argv[1:])
