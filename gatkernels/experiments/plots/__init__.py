"""The plots of an experiment. Each takes and returns matplotlib axes; none needs a display."""

from gatkernels.experiments.plots.attention import entropy, head_overlap, homophily
from gatkernels.experiments.plots.comparison import comparison
from gatkernels.experiments.plots.curves import curves, loss, score
from gatkernels.experiments.plots.degrees import accuracy_by_degree, degrees, in_degrees
from gatkernels.experiments.plots.embedding import project, strongest, tsne
from gatkernels.experiments.plots.graphs import neighbourhood, subgraph
from gatkernels.experiments.plots.style import class_style

__all__ = [
    "accuracy_by_degree",
    "class_style",
    "comparison",
    "curves",
    "degrees",
    "entropy",
    "head_overlap",
    "homophily",
    "in_degrees",
    "loss",
    "neighbourhood",
    "project",
    "score",
    "strongest",
    "subgraph",
    "tsne",
]
