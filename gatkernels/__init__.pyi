"""What type checkers read of the package: the operators by what they are asked to return."""

from typing import Literal, TypedDict, overload

from torch import Tensor
from typing_extensions import Unpack

from gatkernels import models as models
from gatkernels import nn as nn
from gatkernels.accelerate import accelerate as accelerate
from gatkernels.accelerate import restore as restore
from gatkernels.backends import BackendUnavailable as BackendUnavailable
from gatkernels.checkpoints import Loaded as Loaded
from gatkernels.checkpoints import load_state_dict as load_state_dict
from gatkernels.functional import attention_weights as attention_weights
from gatkernels.graph import Graph as Graph

__version__: str

class _Options(TypedDict, total=False):
    negative_slope: float
    dropout: float
    backend: str

class _DotOptions(TypedDict, total=False):
    scale: float | None
    dropout: float
    backend: str

@overload
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    return_attention: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    return_attention: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    return_attention: bool,
    **options: Unpack[_Options],
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None = None,
    *,
    return_attention: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def gatv2_attention(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None = None,
    *,
    return_attention: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None = None,
    *,
    return_attention: bool,
    **options: Unpack[_Options],
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: None = None,
    edge_query: None = None,
    *,
    return_attention: Literal[False] = False,
    **options: Unpack[_DotOptions],
) -> Tensor: ...
@overload
def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: None = None,
    edge_query: None = None,
    *,
    return_attention: Literal[True],
    **options: Unpack[_DotOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor,
    edge_query: Tensor,
    *,
    return_attention: Literal[False] = False,
    **options: Unpack[_DotOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor,
    edge_query: Tensor,
    *,
    return_attention: Literal[True],
    **options: Unpack[_DotOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor | None = None,
    edge_query: Tensor | None = None,
    *,
    return_attention: bool = False,
    **options: Unpack[_DotOptions],
) -> Tensor | tuple[Tensor, ...]: ...
