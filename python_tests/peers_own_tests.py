"""A peer's own tests, run on our layers in the place of theirs.

``python python_tests/peers_own_tests.py TREE`` runs the tests of GAT layers and of basic GNNs of
a source tree of PyG, or of the GAT layers of one of DGL, against the installed package; its classes
are replaced before the tests import them. More arguments go to pytest.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

#: For each package: where its tests are, where they take the layers from, and which are run.
PEERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "torch_geometric": (
        (
            "test/nn/conv/test_gat_conv.py",
            "test/nn/conv/test_gatv2_conv.py",
            "test/nn/models/test_basic_gnn.py",
        ),
        (
            "torch_geometric.nn",
            "torch_geometric.nn.conv",
            "torch_geometric.nn.models.basic_gnn",
            "torch_geometric.nn.conv.gat_conv",
            "torch_geometric.nn.conv.gatv2_conv",
        ),
        "gat",
    ),
    "dgl": (
        ("tests/python/pytorch/nn/test_nn.py",),
        ("dgl.nn", "dgl.nn.pytorch", "dgl.nn.pytorch.conv"),
        "gat_conv or gatv2_conv",
    ),
}
OURS = {"torch_geometric": "gatkernels.pyg", "dgl": "gatkernels.dgl"}


def replace_layers(package: str) -> list[str]:
    """Put our classes wherever the package holds its own; returns the places."""
    ours = importlib.import_module(OURS[package])
    places = []
    for name in PEERS[package][1]:
        module: Any = importlib.import_module(name)
        for theirs, drop_in in ours.DROP_INS.items():
            if getattr(module, theirs.__name__, None) is theirs:
                setattr(module, theirs.__name__, drop_in)
                places.append(f"{name}.{theirs.__name__}")
    return places


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    tree, *rest = arguments
    for package, (files, _, chosen) in PEERS.items():
        paths = [Path(tree) / file for file in files]
        if all(path.is_file() for path in paths):
            sys.path.insert(0, str(Path(tree, "tests")))  # what DGL's tests share
            places = replace_layers(package)
            print(f"{package}: ours in the place of {len(places)} classes: {', '.join(places)}")
            options = ["-p", "no:cacheprovider", "-k", chosen, *rest]
            return int(pytest.main([*map(str, paths), *options]))
    print(f"{tree}: holds the tests of none of {', '.join(PEERS)}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
