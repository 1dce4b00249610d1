"""Peak memory of one forward + backward, above the inputs."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gatkernels.bench import cases
from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import Peer, Step, find
from gatkernels.bench.process import Tick
from gatkernels.ops.build import give_back

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """`bytes` above what was resident before the step, or None and the reason."""

    bytes: int | None
    reason: str = ""


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


def trim() -> None:
    """Give memory that was freed back to the system, so that taking it again shows."""
    gc.collect()
    give_back()


def run(step: Step) -> None:
    out = step.forward()
    gradients = step.backward()
    del out, gradients


def peak_memory(spec: Spec, address: str, tick: Tick) -> Peak:
    """The peak of one step of a peer; meant for a fresh process.

    Raises: NotImplementedError where the peer cannot run the case.
    """
    peer = find(address)
    if reason := peer.unavailable(spec):
        raise NotImplementedError(reason)
    tick(f"{peer.name} weighed")
    return _on_gpu(spec, peer) if spec.device != "cpu" else _on_cpu(spec, peer)


def _on_gpu(spec: Spec, peer: Peer) -> Peak:
    step = peer.prepare(cases.build(spec))
    run(step)
    return on_gpu(step)


def on_gpu(step: Step) -> Peak:
    """The peak of a step that has run before, by the allocator's own statistics."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(step)
    torch.cuda.synchronize()
    return Peak(torch.cuda.max_memory_allocated() - before)


def _on_cpu(spec: Spec, peer: Peer) -> Peak:
    """Warm up on a small graph, touch the inputs, then watch the high-water mark of one step."""
    if not STATUS.exists():
        return Peak(None, "peak memory is read from /proc, which this system lacks")
    warm = peer.prepare(cases.build(replace(spec, graph="power-law:400")))
    for _ in range(2):
        run(warm)
    step = peer.prepare(cases.build(spec))
    if peer.compiles:
        run(step)
    for tensor in (*step.rotation[0], *step.layer.parameters):
        for part in tensor if isinstance(tensor, tuple) else (tensor,):
            part.detach().sum()
    step.hold = True
    trim()
    if not forget_peak():
        return Peak(None, "/proc/self/clear_refs cannot be written, so the peak cannot be reset")
    before = resident()
    out = step.forward()
    gradients = step.backward()
    peak = highest() - before
    del out, gradients
    return Peak(max(peak, 0))
