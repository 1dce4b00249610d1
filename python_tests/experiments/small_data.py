"""Small raw files in the layouts of the real data sets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

CLASSES, NODES, FEATURES, PER_CLASS, TESTS = 3, 700, 12, 20, 100


def write_planetoid(folder: Path, name: str) -> Path:
    """Eight small raw files in Planetoid's layout."""
    rng = np.random.default_rng(0)
    words = (rng.random((NODES, FEATURES)) < 0.2).astype(np.float32)
    onehot = np.eye(CLASSES, dtype=np.int32)[np.arange(NODES) % CLASSES]
    train, known = CLASSES * PER_CLASS, NODES - TESTS
    parts = {
        "x": sparse.csr_matrix(words[:train]),
        "tx": sparse.csr_matrix(words[known:]),
        "allx": sparse.csr_matrix(words[:known]),
        "y": onehot[:train],
        "ty": onehot[known:],
        "ally": onehot[:known],
        "graph": {i: [(i - CLASSES) % NODES, (i + CLASSES) % NODES] for i in range(NODES)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(content))
    order = rng.permutation(np.arange(known, NODES))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{i}\n" for i in order))
    return folder


def write_ppi(path: Path) -> Path:
    """Four graphs for training, one to validate and one to test, in the compact layout."""
    rng = np.random.default_rng(3)
    parts = {"feat_value0": np.zeros(50), "feat_value1": np.ones(50)}
    for split, sizes in (("train", (30, 20, 25, 15)), ("valid", (20,)), ("test", (24,))):
        count = sum(sizes)
        graph = np.repeat(np.arange(len(sizes)) + 1, sizes)
        words = rng.random((count, 50)) < 0.5
        labels = np.repeat(words[:, :11], 11, axis=1)  # the features decide the labels
        starts = np.cumsum([0, *sizes[:-1]])
        pairs = [
            start + np.stack([np.arange(size - 1), np.arange(1, size)])
            for start, size in zip(starts, sizes, strict=True)
        ]
        parts |= {
            f"{split}_x": np.packbits(words, axis=1),
            f"{split}_y": np.packbits(labels, axis=1),
            f"{split}_label_exact": np.arange(count) % 8 != 0,
            f"{split}_graph_id": graph,
            f"{split}_edges": np.concatenate(pairs, axis=1).astype(np.int32),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)
    return path


def write_amazon(path: Path) -> Path:
    """A small graph in the layout of the Amazon and Coauthor files, stored in one direction."""
    rng = np.random.default_rng(5)
    nodes = 240
    words = sparse.random(nodes, 40, 0.1, format="csr", random_state=rng)
    source = np.arange(nodes)
    adjacency = sparse.csr_matrix((np.ones(nodes), (source, (source + 4) % nodes)))
    parts = {"labels": source % 4}
    for key, matrix in (("attr", words), ("adj", adjacency)):
        parts |= {
            f"{key}_data": matrix.data,
            f"{key}_indices": matrix.indices,
            f"{key}_indptr": matrix.indptr,
            f"{key}_shape": np.array(matrix.shape),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)
    return path


def split_sizes(data: Any) -> tuple[int, ...]:
    """How many nodes a data set trains, validates and tests on."""
    return tuple(int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask))
