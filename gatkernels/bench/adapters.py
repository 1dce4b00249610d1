"""Other libraries' layers as peers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.bench.cases import Case, Inputs, Spec
from gatkernels.bench.peers import Layer, Peer, import_failure, load, pyg_layer, register


@register
class PyG(Peer):
    name = "pyg"

    def unavailable(self, spec: Spec) -> str | None:
        return import_failure("torch_geometric.nn")

    def layer(self, case: Case, graph: Any) -> Layer:
        conv, parameters = self.conv(case)
        return Layer(lambda x: conv(x, graph), parameters)

    def conv(self, case: Case) -> tuple[Any, list[Tensor]]:
        from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

        return pyg_layer({"gat": GATConv, "gatv2": GATv2Conv, "dot": TransformerConv}, case)


@register
class PyGCompiled(PyG):
    """PyG's layer under torch.compile; compiling counts as part of the first call."""

    name = "pyg-compiled"
    compiles = True

    def layer(self, case: Case, graph: Any) -> Layer:
        conv, parameters = self.conv(case)
        compiled: Any = torch.compile(conv, dynamic=False)
        return Layer(lambda x: compiled(x, graph), parameters)


@register
class DGL(Peer):
    name = "dgl"

    def unavailable(self, spec: Spec) -> str | None:
        if spec.layer == "dot":
            return "DGL has no layer of dot products"
        if spec.dtype in ("bfloat16", "float16") and spec.device == "cpu":
            return "DGL's CPU kernels have no 16-bit types"
        return import_failure("dgl.nn.pytorch")

    def graph(self, case: Case) -> Any:
        import dgl

        ends, counts = tuple(case.edge_index), {"u": case.edges.num_src, "v": case.edges.num_dst}
        if case.bipartite:
            graph = dgl.heterograph({("u", "to", "v"): ends}, num_nodes_dict=counts)
        else:
            graph = dgl.graph(ends, num_nodes=counts["v"])
        graph.create_formats_()
        return graph

    def layer(self, case: Case, graph: Any) -> Layer:
        from dgl.nn.pytorch import GATConv, GATv2Conv

        if case.spec.layer == "gat":
            conv = GATConv(case.in_channels, case.channels, case.heads, allow_zero_in_degree=True)
            names = ["fc.weight", "attn_l", "attn_r", "bias"]
        else:
            conv = GATv2Conv(
                case.in_channels,
                case.channels,
                case.heads,
                bias=False,
                allow_zero_in_degree=True,
            )
            names = ["fc_src.weight", "fc_dst.weight", "attn"]
        conv = conv.to(case.spec.device, case.dtype)
        own = dict(conv.named_parameters())
        parameters = [
            load(own[name], value) for name, value in zip(names, case.weights.values(), strict=True)
        ]
        return Layer(lambda x: conv(graph, x).flatten(1), parameters)


class _SparseProduct(torch.autograd.Function):
    """`A @ x` for a CSR matrix with differentiable values.

    torch's own gradient of the values goes through a dense `[num_dst, num_src]` matrix on a CPU;
    this one takes a dot product per edge, as somebody who composes GAT from torch.sparse would.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, graph: _SparseGraph) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.graph = graph
        return _csr(graph.rowptr, graph.col, values, graph.size) @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        values, x = ctx.saved_tensors
        graph = ctx.graph
        dots = (grad[graph.row] * x[graph.col]).sum(-1)
        back = _csr(graph.colptr, graph.row[graph.order], values[graph.order], graph.size[::-1])
        return dots, back @ grad, None


def _csr(rowptr: Tensor, col: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR layout a beta
        return torch.sparse_csr_tensor(rowptr, col, values, size, check_invariants=False)


@dataclass(frozen=True)
class _SparseGraph:
    row: Tensor  # [E], ascending
    col: Tensor
    rowptr: Tensor
    colptr: Tensor
    order: Tensor  # of the edges by source
    size: tuple[int, int]


@register
class TorchSparse(Peer):
    """GAT from torch.sparse: one sparse softmax and one sparse product per head."""

    name = "torch-sparse"

    def unavailable(self, spec: Spec) -> str | None:
        if spec.layer != "gat":
            return "its layer is GAT's alone"
        if spec.dtype in ("bfloat16", "float16"):
            return "torch.sparse.softmax has no 16-bit types"
        return None

    def graph(self, case: Case) -> _SparseGraph:
        src, dst = case.edge_index
        num_src, num_dst = case.edges.num_src, case.edges.num_dst
        keys = torch.unique(dst * num_src + src)
        if keys.numel() != case.num_edges:
            raise NotImplementedError("torch.sparse adds parallel edges up")
        row, col = keys // num_src, keys % num_src
        rowptr = F.pad(torch.bincount(row, minlength=num_dst).cumsum(0), (1, 0))
        colptr = F.pad(torch.bincount(col, minlength=num_src).cumsum(0), (1, 0))
        order = torch.argsort(col, stable=True)
        return _SparseGraph(row, col, rowptr, colptr, order, (num_dst, num_src))

    def layer(self, case: Case, graph: _SparseGraph) -> Layer:
        index = torch.stack([graph.row, graph.col])
        parameters = [nn.Parameter(value.clone()) for value in case.weights.values()]
        lin, att_src, att_dst, bias = parameters

        def head(x: Tensor, score: Tensor) -> Tensor:
            scores = torch.sparse_coo_tensor(
                index, score, graph.size, is_coalesced=True, check_invariants=False
            )
            alpha = torch.sparse.softmax(scores, 1).values()
            out: Tensor = _SparseProduct.apply(alpha, x, graph)  # type: ignore[no-untyped-call]
            return out

        def call(inputs: Inputs) -> Tensor:
            x_src, x_dst = (
                F.linear(x, lin).unflatten(1, (case.heads, case.channels))
                for x in (inputs if isinstance(inputs, tuple) else (inputs, inputs))
            )
            scores = (x_src * att_src).sum(-1)[graph.col] + (x_dst * att_dst).sum(-1)[graph.row]
            scores = F.leaky_relu(scores, 0.2)
            heads = [head(x_src[:, h], scores[:, h]) for h in range(case.heads)]
            return torch.cat(heads, 1) + bias

        return Layer(call, parameters)


class _CudaOnly(Peer):
    """Adapters written from the libraries' sources; they have not been run by their authors."""

    module: str
    cuda_only = True

    def unavailable(self, spec: Spec) -> str | None:
        if not spec.device.startswith("cuda"):
            return "runs on CUDA only"
        return import_failure(self.module)


@register
class DgNN(_CudaOnly):
    """dgNN's fused GAT through PyG's `FusedGATConv`; float32, one set of nodes."""

    name = "dgnn"
    module = "dgNN.operators"

    def unavailable(self, spec: Spec) -> str | None:
        if spec.layer != "gat" or spec.dtype != "float32" or spec.graph == "gowalla":
            return "only GAT, float32, sources = destinations"
        return super().unavailable(spec)

    def graph(self, case: Case) -> Any:
        from torch_geometric.nn import FusedGATConv

        # Its rows are the nodes that gather, so destinations come first.
        count = case.edges.num_dst
        return FusedGATConv.to_graph_format(case.edge_index.flip(0), (count, count))

    def layer(self, case: Case, graph: Any) -> Layer:
        from torch_geometric.nn import FusedGATConv

        conv, parameters = pyg_layer({"gat": FusedGATConv}, case)
        if getattr(conv, "lin_src", None) is None:  # its forward reads the name of older PyG
            conv.lin_src = conv.lin
        return Layer(lambda x: conv(x, *graph), parameters)


@register
class TurboGNN(_CudaOnly):
    """turbo-gnn's GATv2; 32, 64, 128 or 256 channels, one set of nodes."""

    name = "turbo-gnn"
    module = "turbo_gnn"

    def unavailable(self, spec: Spec) -> str | None:
        if spec.layer != "gatv2" or spec.graph == "gowalla":
            return "only GATv2, sources = destinations"
        if spec.dtype not in ("float32", "bfloat16"):
            return "only float32 and bfloat16"
        return super().unavailable(spec)

    def graph(self, case: Case) -> Any:
        from turbo_gnn import AdjacencyForwardBackwardWithNodeBuckets as Adjacency

        return Adjacency.from_edge_list(case.edge_index, num_nodes=case.edges.num_dst)

    def layer(self, case: Case, graph: Any) -> Layer:
        from turbo_gnn import gatv2_aggr

        if case.channels not in (32, 64, 128, 256):
            raise NotImplementedError("only 32, 64, 128 or 256 channels per head")
        parameters = [nn.Parameter(value.clone()) for value in case.weights.values()]
        lin_src, lin_dst, att = parameters

        def call(inputs: Inputs) -> Tensor:
            x = inputs[0] if isinstance(inputs, tuple) else inputs
            source, target = (
                F.linear(x, lin).unflatten(1, (case.heads, case.channels))
                for lin in (lin_src, lin_dst)
            )
            out: Tensor = gatv2_aggr(graph, target, x_neighbors=source, attention_weights=att[0])
            return out

        return Layer(call, parameters)
