"""Why pytorch-GAT sees no attention on PPI: its softmax, run on the logits of a trained network.

    gatkernels train ppi --out runs/ppi
    python docs/ppi_attention.py runs/ppi docs/ppi_attention.json

pytorch-GAT subtracts the largest logit of the whole graph before it takes exponentials, and adds
1e-16 to each node's sum of them. For a node whose own largest logit lies about 37 below, the sum is
smaller than 1e-16, and its attention goes to zero instead of adding up to 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels.experiments.attention import Attention, Layer, entropy, uniform_entropy
from gatkernels.experiments.batches import f1_counts
from gatkernels.experiments.runs import load_run, versions
from gatkernels.experiments.view import View

EPSILON = 1e-16  # what pytorch-GAT adds to the sums


def projected(layer: Layer) -> Tensor:
    """``x W``, ``[N, H, C]``."""
    module: Any = layer.module
    result: Tensor = module.lin(layer.inputs).unflatten(1, (module.heads, module.out_channels))
    return result


def logits(layer: Layer) -> Tensor:
    """What the softmax of a GAT layer is taken of, float32 ``[E, H]``."""
    module: Any = layer.module
    features, edges = projected(layer), layer.attention
    score_src = (features * module.att_src).sum(-1)
    score_dst = (features * module.att_dst).sum(-1)
    return F.leaky_relu(score_src[edges.src] + score_dst[edges.dst], module.negative_slope)


def global_maximum_softmax(values: Tensor, attention: Attention) -> Tensor:
    """pytorch-GAT's softmax over the edges into each node, in float32."""
    weight = torch.exp(values - values.max())
    total = torch.zeros(attention.num_nodes, attention.heads).index_add(0, attention.dst, weight)
    return weight / (total[attention.dst] + EPSILON)


def row_maximum(values: Tensor, attention: Attention) -> Tensor:
    index = attention.dst[:, None].expand_as(values)
    low = torch.full((attention.num_nodes, attention.heads), float("-inf"))
    return low.scatter_reduce(0, index, values, "amax")


def forward(view: View, softmax: Any) -> Tensor:
    """The network's logits with another softmax, head by head."""
    x = view.x
    for place, watched in enumerate(view.layers):
        layer = Layer(watched.module, x, watched.attention)
        module: Any = layer.module
        edges, alpha = layer.attention, softmax(logits(layer), layer.attention)
        out = projected(layer)
        for head in range(edges.heads):
            message = alpha[:, head, None] * out[edges.src, head]
            out[:, head] = torch.zeros_like(out[:, head]).index_add(0, edges.dst, message)
        out = out.flatten(1) if module.concat else out.mean(1)
        if module.res is not None:
            out = out + module.res(x)
        out = out + module.bias
        x = out if place == len(view.layers) - 1 else F.elu(out)
    return x


def micro_f1(view: View, output: Tensor) -> float:
    both, either = f1_counts(output, view.y).tolist()
    return both / either


def facts(layer: Layer) -> dict[str, Any]:
    """Logits, entropies, and what becomes of the attention, per head and for the layer."""
    attention, values = layer.attention, logits(layer)
    flawed = global_maximum_softmax(values, attention)
    sums = attention.sum_rows(flawed)
    below = values.max() - row_maximum(values, attention)  # [N, H]
    bits = entropy(attention)
    return {
        "heads": attention.heads,
        "logit_min": float(values.min()),
        "logit_max": float(values.max()),
        "logit_spread": float(values.max() - values.min()),
        "row_maximum_below_global_median": float(below.median()),
        "row_maximum_below_global_largest": float(below.max()),
        "entropy_bits": [round(float(mean), 4) for mean in bits.mean(0)],
        "uniform_entropy_bits": round(float(uniform_entropy(attention).mean()), 4),
        "exact_sum_of_row_off_by": float((attention.sum_rows(attention.alpha) - 1).abs().max()),
        "global_maximum_mean_sum_of_row": float(sums.mean()),
        "global_maximum_rows_below_one_half": float((sums < 0.5).double().mean()),
        "global_maximum_rows_below_one_percent": float((sums < 0.01).double().mean()),
        "global_maximum_rows_exactly_zero": float((sums == 0).double().mean()),
        "global_maximum_rows_below_one_half_per_head": [
            round(float(share), 4) for share in (sums < 0.5).double().mean(0)
        ],
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of the tutorial."""
    lines = [
        "| layer | scores | lie apart by | entropy, bits (uniform) | weights that add up to "
        "less than 1/2 | to exactly 0 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for number, layer in enumerate(result["layers"], 1):
        bits = layer["entropy_bits"]
        lines.append(
            f"| {number} | {layer['logit_min']:.0f} to {layer['logit_max']:.0f} "
            f"| {layer['logit_spread']:.0f} "
            f"| {sum(bits) / len(bits):.2f} ({layer['uniform_entropy_bits']:.2f}) "
            f"| {layer['global_maximum_rows_below_one_half']:.2%} "
            f"| {layer['global_maximum_rows_exactly_zero']:.2%} |"
        )
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main(folder: Path, out: Path) -> None:
    view = View.of(load_run(folder))
    rebuilt = forward(view, lambda values, attention: attention.alpha)
    torch.testing.assert_close(rebuilt, view.logits, rtol=1e-3, atol=1e-3)
    result = {
        "network": view.run.preset.to_dict(),
        "epoch": view.run.history["best_epoch"],
        "test_graphs": {"nodes": view.num_nodes, "edges": int(view.edge_index.shape[1])},
        "micro_f1": micro_f1(view, view.logits),
        "micro_f1_global_maximum": micro_f1(view, forward(view, global_maximum_softmax)),
        "layers": [facts(layer) for layer in view.layers],
        "versions": versions(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
