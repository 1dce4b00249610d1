"""Bytes that a layer has to move, so that a time becomes a bandwidth.

With R = heads * channels elements of b bytes per row, int32 columns and float32 scalars. Compulsory
bytes are each array once, as with an endless cache; gathered bytes count a row for every edge that
reads it, as with none. Both include the projection's input and output; `attention` leaves it out.
"""

from __future__ import annotations

from gatkernels.bench.cases import Case


def compulsory(case: Case) -> dict[str, int]:
    """Bytes by phase."""
    source, target, edges, heads = _sizes(case)
    rows, scalars = (source + target), 4 * heads * (case.edges.num_src + case.edges.num_dst)
    projected = _projected(case)
    forward = projected + rows + 4 * edges + scalars
    backward = projected + source + 2 * rows + 8 * edges + 3 * scalars
    if case.spec.layer == "gatv2":
        forward += target
        backward += 2 * target
    if case.spec.layer == "dot":  # keys and values, queries and results
        forward += rows
        backward += 2 * rows - source
    return _phases(forward, backward)


def gathered(case: Case) -> dict[str, int]:
    """Bytes by phase."""
    counts = case.edges.num_src, case.edges.num_dst
    row = case.width * case.dtype.itemsize
    floor = attention(case.spec.layer, counts, case.num_edges, case.heads, row)
    projected = _projected(case)
    return _phases(projected + floor["forward"], projected + floor["backward"])


def attention(
    layer: str, counts: tuple[int, int], edges: int, heads: int, row: int
) -> dict[str, int]:
    """Gathered bytes of the attention alone by phase, for rows of `row` bytes."""
    source, target = counts[0] * row, counts[1] * row
    if layer == "gat":
        forward = edges * (row + max(32, 4 * heads) + 4) + target + 12 * heads * counts[1]
        backward = edges * (row + max(32, 16 * heads) + 8) + source + 2 * target
    elif layer == "dot":
        forward = edges * (2 * row + 4) + 2 * target
        backward = edges * (4 * row + max(32, 12 * heads) + 8) + 4 * (source + target)
    else:
        forward = edges * (row + 4) + 2 * target
        backward = edges * (3 * row + max(32, 8 * heads) + 8) + 3 * (source + target)
    return _phases(forward, backward)


def _sizes(case: Case) -> tuple[int, int, int, int]:
    """Bytes of the rows of sources and of destinations, number of edges and heads."""
    row = case.width * case.dtype.itemsize
    return case.edges.num_src * row, case.edges.num_dst * row, case.num_edges, case.heads


def _projected(case: Case) -> int:
    """Input read, features written (backward: their gradient read), once per projection."""
    source, target = case.edges.num_src, case.edges.num_dst
    if case.spec.layer == "dot":  # side by side: two of each side, or four
        inputs = case.in_channels * (source + target if case.bipartite else source)
        return (inputs + 2 * case.width * (source + target)) * case.dtype.itemsize
    per_row = (case.in_channels + case.width) * case.dtype.itemsize
    if case.bipartite or case.spec.layer == "gatv2":
        return (source + target) * per_row
    return source * per_row


def _phases(forward: int, backward: int) -> dict[str, int]:
    return {"forward": forward, "backward": backward, "step": forward + backward}
