"""Messages between the ranks of a group; what goes wrong is an error that names the rank."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

#: Seconds after which a rank that has not come is taken for lost.
TIMEOUT = 60.0


class RankError(RuntimeError):
    """A rank is gone, has not come in time, or has come with something else than the others."""


class Peers:
    """The ranks of a process group, numbered from 0 in its order.

    Messages go from rank to rank, so that a rank which waits knows for whom. They have process
    groups of their own: gloo's, which is told the time-out, and for tensors of a GPU the user's
    where that is NCCL's. Without NCCL those go through the CPU's memory.
    """

    def __init__(self, parent: Any, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(parent), dist.get_world_size(parent)
        self.timeout = timeout
        self._ranks = dist.get_process_group_ranks(parent)
        # dist.new_group takes a name that differs where ranks are members of different numbers of
        # groups, and they would not find each other
        store = distributed_c10d._get_default_store()
        name = f"gatkernels/{parent.group_name}/{timeout:g}"
        store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        try:
            self._gloo: Any = dist.ProcessGroupGloo(
                store, self.rank, self.size, timedelta(seconds=timeout)
            )
        except RuntimeError as error:
            raise RankError(
                f"ShardedGraph: not all of {self.size} ranks came within {timeout:g} s: "
                f"{_first_line(error)}"
            ) from error
        self._nccl = parent if "nccl" in dist.get_backend(parent) else None

    def start(
        self, sends: Sequence[Tensor], receives: Sequence[Tensor], op: str
    ) -> Callable[[], None]:
        """Messages to and from every rank; what is returned waits for them.

        Args:
            sends: Of each rank a contiguous tensor for it; empty ones are not sent.
            receives: Of each rank a contiguous tensor to be written, of the size sent there.
            op: Who sends, for error messages.
        """
        on_gpu = receives[self.rank].is_cuda and self._nccl is None
        written = receives
        if on_gpu:
            sends, receives = (
                [t.cpu() for t in sends],
                [torch.empty_like(t, device="cpu") for t in receives],
            )
        others = [(self.rank + hop) % self.size for hop in range(1, self.size)]
        steps = [
            (step, tensors[rank], rank)  # every rank begins with another one
            for step, tensors in (("recv", receives), ("send", sends))
            for rank in others
            if tensors[rank].numel()
        ]
        if receives[self.rank].is_cuda:  # in one launch, as NCCL's would wait for each other
            how = {"recv": dist.irecv, "send": dist.isend}
            batch = [dist.P2POp(how[s], t, self._ranks[rank], self._nccl) for s, t, rank in steps]
            works = [(others, w) for w in dist.batch_isend_irecv(batch)] if batch else []
        else:
            works = [([rank], self._begin(step, t, rank, op)) for step, t, rank in steps]
        receives[self.rank].copy_(sends[self.rank])

        def finish() -> None:
            self._wait(works, op)
            sent = sends  # memory that must live until now
            if on_gpu:
                for to, found in zip(written, receives, strict=True):
                    to.copy_(found)
            del sent

        return finish

    def _begin(self, step: str, tensor: Tensor, rank: int, op: str) -> Any:
        try:
            return getattr(self._gloo, step)([tensor], rank, 0)
        except RuntimeError as error:
            raise self._lost([rank], op, error) from error

    def _wait(self, works: list[tuple[list[int], Any]], op: str) -> None:
        failed: list[int] = []
        first = None
        for ranks, work in works:
            try:
                work.wait() if first is None else work.wait(timedelta(seconds=0.1))
            except RuntimeError as error:
                failed += ranks
                first = first or error
        if first is not None:
            raise self._lost(failed, op, first) from first

    def _lost(self, ranks: list[int], op: str, error: RuntimeError) -> RankError:
        names = sorted(set(ranks))
        who = f"rank {names[0]} is" if len(names) == 1 else f"ranks {names} are"
        return RankError(
            f"{op}: {who} gone, or did not come within {self.timeout:g} s "
            f"(rank {self.rank} of {self.size} waited): {_first_line(error)}"
        )

    def counts(self, sends: Sequence[int], op: str) -> list[int]:
        """A number to each rank, and one from each."""
        given = [torch.tensor([count]) for count in sends]
        found = [torch.empty_like(one) for one in given]
        self.start(given, found, op)()
        return [int(one) for one in found]

    def total(self, values: Tensor, op: str) -> Tensor:
        """The sum of all ranks' ``values``."""
        found = values.cpu()
        try:
            self._gloo.allreduce([found]).wait()
        except RuntimeError as error:
            raise RankError(f"{op}: a rank is gone: {_first_line(error)}") from error
        return found.to(values.device)

    def gather(self, value: Any, op: str) -> list[Any]:
        """What every rank came with."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = self.counts([data.numel()] * self.size, op)
        found = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        self.start([data] * self.size, found, op)()
        return [pickle.loads(one.numpy().tobytes()) for one in found]

    def together(self, error: Exception | None, op: str) -> None:
        """Raises on all ranks what one of them has to raise."""
        found = self.gather(None if error is None else (type(error), str(error)), op)
        wrong = [(rank, one) for rank, one in enumerate(found) if one is not None]
        if not wrong:
            return
        if error is not None and len(wrong) == self.size:
            raise error
        rank, (kind, text) = wrong[0]
        raise kind(f"rank {rank}: {text}") from error

    def agree(self, text: str, op: str, number: int = 0) -> int:
        """Rank 0's number, where all ranks come with the same text; else all raise RankError."""
        if self.size == 1:
            return number
        digest = int.from_bytes(
            hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True
        )
        given = torch.tensor([digest, number])
        found = torch.empty(self.size, 2, dtype=torch.int64)
        self.start([given] * self.size, [*found.unbind()], op)()
        digests, numbers = found.t().tolist()
        if len(set(digests)) == 1:
            first: int = numbers[0]
            return first
        texts = self.gather(text, op)
        most = max(texts, key=texts.count)
        others = [f"rank {rank}: {one}" for rank, one in enumerate(texts) if one != most]
        raise RankError(f"{op}: the ranks disagree; {'; '.join(others)}; the others: {most}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_made: WeakKeyDictionary[Any, dict[float, Peers]] = WeakKeyDictionary()


def peers_of(group: Any, timeout: float, op: str) -> Peers:
    """The peers of a process group (None: of all processes); one object for all graphs."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{op}: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group('gloo'), in processes that torchrun has started"
        )
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"{op}: 'timeout' must be a number of seconds above 0, got {timeout!r}")
    parent = dist.group.WORLD if group is None else group
    if parent == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{op}: this process is no member of 'group'")
    made = _made.setdefault(parent, {})
    if timeout not in made:
        made[timeout] = Peers(parent, float(timeout))
    return made[timeout]
