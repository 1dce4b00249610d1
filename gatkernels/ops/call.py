"""What a call of an operator is made of: the only lists of its fields.

The schemas of the torch ops are made from these records (:mod:`gatkernels.ops.library`), backends
take them as they are, and ``csrc/bindings/records.h`` reads their fields in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Edges(NamedTuple):
    """A graph's edges by row: by destination (CSR), or turned round by source (CSC)."""

    rowptr: Tensor  # [rows + 1] int64
    col: Tensor  # [E] int32, the node at the other end
    eid: Tensor  # [E] int32, place in the user's order
    schedule: Sequence[Tensor]  # for GPUs, see gatkernels/backends/schedule.py; empty elsewhere
    draw: Tensor | None = None  # [E] int32, what dropout draws by, unsigned; None: eid
    whole: int = 0  # edges of the graph that these are a shard of; 0: these are all
    whole_nodes: int = 0  # of that graph, at the edges' other ends


class Scoring(NamedTuple):
    """What becomes of scores, besides the softmax."""

    negative_slope: float
    dropout: float
    seed: Tensor | None  # [1] int64, where dropout > 0
    first_head: int = 0  # what head 0 is to the draws, where a call has some of the heads


class GatInputs(NamedTuple):
    """Of an attention with a score per node: x, and the scores or what they are taken of x by.

    Scores, and attention vectors, are in the dtype of sums. Where there is an attention vector,
    a forward is given no such score, and a backward the one that the forward has found.
    """

    x: Tensor  # [Ns, H, C]
    score_src: Tensor | None  # [Ns, H]
    score_dst: Tensor | None  # [Nd, H]
    edge_score: Tensor | None  # [E, H]
    att_src: Tensor | None  # [1, H, C]
    att_dst: Tensor | None  # [1, H, C]; sources are destinations then


class GatCall(NamedTuple):
    csr: Edges
    inputs: GatInputs
    scoring: Scoring


class GatSaved(NamedTuple):
    """What a forward leaves for its backward."""

    out: Tensor  # [Nd, H, C]
    out_pos: Tensor  # [Nd, H, C], of edges with a positive score
    stats: Tensor  # [Nd, 3, H]: row maximum, 1 / sum, share of positive edges
    alpha: Tensor | None  # [E, H] after dropout, where it was asked for


class GatDestinationGrads(NamedTuple):
    """What a destination computes of its own row in a backward."""

    dst: Tensor  # [Nd, H], of score_dst
    fields: Tensor  # [Nd, 4 H], what its edges find of it, as the backend likes


class GatSourceGrads(NamedTuple):
    """What a source computes of the rows and fields of its edges' destinations."""

    x: Tensor  # [Ns, H, C], with what comes through scores that were taken of x
    src: Tensor  # [Ns, H], of score_src
    edge: Tensor | None  # [E, H], of edge_score
    att: Tensor  # [0 to 2, H, C], of the attention vectors


class RowwiseInputs(NamedTuple):
    """Of an attention whose scores read the rows at both ends of an edge."""

    x_src: Tensor  # [Ns, H, C]
    x_dst: Tensor  # [Nd, H, C]
    att: Tensor  # [H, C], in the dtype of sums
    edge: Tensor | None  # [E, H, C]


class RowwiseCall(NamedTuple):
    scorer: str  # one of csrc/core/scores.h
    csr: Edges
    inputs: RowwiseInputs
    scoring: Scoring


class RowwiseSaved(NamedTuple):
    out: Tensor  # [Nd, H, C]
    stats: Tensor  # [Nd, 3, H]: row maximum, 1 / sum, unused
    alpha: Tensor | None


class RowwiseDestinationGrads(NamedTuple):
    dst: Tensor  # [Nd, H, C], of x_dst
    att: Tensor  # [H, C]
    edge: Tensor | None  # [E, H, C]
    fields: Tensor  # [Nd, 4 H]


class OutGrads(NamedTuple):
    """Gradients of an operator's results."""

    out: Tensor  # [Nd, H, C]
    alpha: Tensor | None  # [E, H]


class DotScoring(NamedTuple):
    """What becomes of dot products."""

    scale: float
    dropout: float
    seed: Tensor | None  # [1] int64, where dropout > 0
    first_head: int = 0  # what head 0 is to the draws, where a call has some of the heads


class DotInputs(NamedTuple):
    """Of an attention by dot products; all of one dtype."""

    q: Tensor  # [Nd, H, C]
    k: Tensor  # [Ns, H, C]
    v: Tensor  # [Ns, H, D]
    edge: Tensor | None  # [E, F], shared by the heads
    edge_query: Tensor | None  # [Nd, H, F], where there is edge


class DotCall(NamedTuple):
    csr: Edges
    inputs: DotInputs
    scoring: DotScoring


class DotSaved(NamedTuple):
    out: Tensor  # [Nd, H, D]
    edge_out: Tensor | None  # [Nd, H, F]
    stats: Tensor  # [Nd, 3, H]: row maximum, 1 / sum, unused
    alpha: Tensor | None


class DotDestinationGrads(NamedTuple):
    q: Tensor  # [Nd, H, C]
    edge: Tensor | None  # [E, F]
    edge_query: Tensor | None  # [Nd, H, F]
    fields: Tensor  # [Nd, 4 H]


class DotSourceGrads(NamedTuple):
    k: Tensor  # [Ns, H, C]
    v: Tensor  # [Ns, H, D]


class DotGrads(NamedTuple):
    out: Tensor  # [Nd, H, D]
    edge_out: Tensor | None  # [Nd, H, F], where there is edge
    alpha: Tensor | None  # [E, H]
