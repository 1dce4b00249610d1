"""Training by several processes: the curve of one process; files, faults, resuming."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import worlds

pytest.importorskip("torch_geometric")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

from small_data import write_amazon, write_planetoid, write_ppi

from gatkernels import cli
from gatkernels.experiments import datasets, sharded
from gatkernels.experiments.presets import get_preset
from gatkernels.experiments.training import Options, Training
from gatkernels.experiments.world import World

ROOT = Path(__file__).parents[2]
EPOCHS = 4
PLAIN = {"dropout": 0.0, "hidden": 4, "heads": 4, "epochs": EPOCHS}
#: Data set, model, preset, exchange.
CASES = (
    ("cora", "gat", {**PLAIN, "feature_dropout": 0.0}, "halo"),
    ("cora", "gat", {**PLAIN, "feature_dropout": 0.0}, "heads"),
    ("cora", "gatv2", PLAIN, "auto"),
    ("cora", "transformer", PLAIN, "halo"),
    ("photo", "transformer", {**PLAIN, "residual": True}, "heads"),
    ("cora", "gcn", {"dropout": 0.0, "epochs": EPOCHS}, "halo"),
    ("photo", "mlp", {"dropout": 0.0, "epochs": EPOCHS}, "halo"),
    ("ppi", "gat", {**PLAIN, "out_heads": 2, "batch": 3}, "halo"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Small raw files of three data sets."""
    folder = tmp_path_factory.mktemp("data")
    write_planetoid(folder / "planetoid" / "Cora" / "raw", "cora")
    write_ppi(folder / "ppi" / "ppi_compact.npz")
    write_amazon(folder / "amazon" / "Photo" / "raw" / "amazon_electronics_photo.npz")
    return folder


def curves(folder: Path, world: World, cases: Any) -> list[Any]:
    """Of every case the curve, and what the best weights score."""
    found = []
    for name, model, options, exchange in cases:
        data = datasets.load(name, folder)
        preset = get_preset(name, model).with_options(**options)
        run = Training(preset, data, 3, Options(exchange=exchange), world=world)
        while not run.finished:
            run.step()
        result = run.result("epochs")
        scores = [result.test_loss, result.test_score, result.test_score_exact or 0.0]
        found.append((np.array(run.rows), np.array(scores), result.best_epoch))
    return found


def curves_of_rank(rank: int, size: int, folder: Path, cases: Any) -> list[Any]:
    return curves(folder, World(rank, size), cases)


@pytest.mark.parametrize("size", [2, 3])
def test_the_curve_is_that_of_one_process(size: int, folder: Path) -> None:
    alone = curves(folder, World(), CASES)
    together = worlds.run(size, curves_of_rank, size, folder, CASES)
    for case, one in zip(CASES, alone, strict=True):
        assert one[0].shape == (EPOCHS, 4)
        assert len(np.unique(one[0][:, 0])) == EPOCHS, case  # it learns
    for found in together:  # all ranks know the same
        for case, one, many, first in zip(CASES, alone, found, together[0], strict=True):
            for what, expected, got in zip(("curve", "test"), one, many, strict=False):
                np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-6, err_msg=str(case))
                assert what
            assert one[2] == many[2]
            assert np.array_equal(many[0], first[0])


def dropouts_of_rank(rank: int, size: int, folder: Path) -> Any:
    """Whether weights agree between ranks, and whose random numbers are alike, after two epochs."""
    data = datasets.load("cora", folder)
    preset = get_preset("cora").with_options(hidden=4, epochs=4)
    run = Training(preset, data, 0, world=World(rank, size))
    for _ in range(2):
        run.step()
    state = copy.deepcopy(run.state_dict())  # as a file would hold it
    weights = torch.cat([weight.flatten() for weight in state["model"].values()])
    ahead = [run.step()[1:] for _ in range(2)]
    again = Training(preset, data, 0, world=World(rank, size))
    again.load_state_dict(state)
    back = [again.step()[1:] for _ in range(2)]
    return weights, torch.rand(4), ahead, back


def test_dropout_is_drawn_apart_and_resumed_exactly(folder: Path) -> None:
    found = worlds.run(2, dropouts_of_rank, 2, folder)
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
    for _, _, ahead, back in found:
        assert ahead == back


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_rows(layout: str) -> None:
    dense = torch.randn(30, 7) * (torch.rand(30, 7) < 0.4)
    dense[[0, 5, 6, 29]] = 0.0
    x = dense.to_sparse_csr() if layout == "sparse" else dense
    for chosen in ([0, 1, 5, 6, 20, 29], [], [29], list(range(30))):
        found = sharded.rows(x, torch.tensor(chosen, dtype=torch.int64))
        assert found.layout == x.layout
        assert torch.equal(found.to_dense(), dense[chosen])


def command_of_rank(
    rank: int, size: int, port: int, here: Path, runs: list[list[str]], restarts: list[str]
) -> list[int]:
    """``gatkernels`` with each of the arguments, as ``torchrun`` would start this rank."""
    os.chdir(here)
    dist.barrier()  # or the group would end under a rank that still joins it
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GATKERNELS_CACHE": "cache"}
    codes = []
    for place, args in enumerate(runs):
        os.environ["MASTER_PORT"] = str(port + place)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = restarts[place]
        file = Path(f"{place}-{rank}.txt").open("w")  # noqa: SIM115 (the process ends soon)
        sys.stdout = sys.stderr = file
        try:
            codes.append(cli.main(args))
        except SystemExit as end:
            codes.append(int(str(end.code)))
        file.flush()
    return codes


def commands(
    size: int, *runs: list[str], restarts: list[str] | None = None
) -> tuple[list[list[int]], list[list[str]]]:
    """The exit status and the text of each run, by rank; how often it was started again."""
    restarts = restarts or ["0"] * len(runs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    codes = worlds.run(size, command_of_rank, size, port, Path.cwd(), list(runs), restarts)
    texts = [
        [Path(f"{p}-{rank}.txt").read_text() for p in range(len(runs))] for rank in range(size)
    ]
    return codes, texts


def metrics(folder: str) -> Any:
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_the_command_shows_saves_and_resumes_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ["--hidden", "4", "--dropout", "0", "--feature-dropout", "0", "--data", str(folder)]
    args = ["train", "cora", *plain, "--epochs"]
    assert cli.main([*args, "6", "--out", "whole", "--quiet"]) == 0
    codes, texts = commands(
        2,
        [*args, "3", "--out", "many"],
        ["train", "cora", *plain, "--seed", "-1"],
        ["train", "citeseer", *plain],
        [*args, "6", "--out", "many", "--resume", "--hidden", "5"],
        ["reproduce", "--datasets", "cora", "--out", "table"],
    )
    assert codes == [[0, 2, 2, 2, 2]] * 2
    assert re.search(r"epoch 3  loss", texts[0][0])
    assert "wrote checkpoint.pt, metrics.json, curves.png to many" in texts[0][0]
    assert texts[1] == [""] * 5
    errors = [text.strip() for text in texts[0][1:]]
    assert errors[0] == "gatkernels train: error: seed must lie in [0, 2^63), got -1"
    assert re.match(
        "gatkernels train: error: .*no CiteSeer there; expected ind.citeseer.x", errors[1]
    )
    assert errors[2].endswith(
        "rank 0: many: cannot resume, it was trained with other hidden (4, not 5)"
    )
    assert errors[3].startswith("gatkernels reproduce: error: it runs in one process")
    assert not Path("table").exists()
    assert metrics("many")["settings"]["processes"] == 2
    names = {path.name for path in Path("many").iterdir()}
    assert names == {"checkpoint.pt", "metrics.json", "curves.png", "state.pt"}
    codes, texts = commands(3, [*args, "5", "--out", "many", "--resume", "--quiet"])
    assert codes == [[0]] * 3
    assert "resuming seed 0 at epoch 3" in texts[0][0]
    assert cli.main([*args, "6", "--out", "many", "--resume", "--quiet"]) == 0  # alone again
    (many,), (whole,) = metrics("many")["runs"], metrics("whole")["runs"]
    for name, curve in whole["curves"].items():
        np.testing.assert_allclose(many["curves"][name], curve, rtol=2e-4, err_msg=name)
    assert math.isclose(many["test_score"], whole["test_score"])


def test_a_restart_goes_on_from_the_last_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``torchrun --max-restarts`` says it: by the variable that counts them."""
    monkeypatch.chdir(tmp_path)
    args = ["train", "cora", "--hidden", "4", "--data", str(folder), "--out", "out", "--epochs"]
    runs = [*args, "5"], [*args, "3"], [*args, "6"]
    codes, texts = commands(2, *runs, restarts=["0", "0", "1"])
    assert codes == [[0] * 3] * 2
    assert "resuming" not in texts[0][0] + texts[0][1]  # what another training left is no start
    assert "resuming seed 0 at epoch 3" in texts[0][2]
    assert metrics("out")["runs"][0]["epochs"] == 6


@pytest.mark.parametrize("name", ["distributed", "distributed_minibatch"])
def test_examples(name: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, str(ROOT / "examples" / f"{name}.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"test accuracy ([\d.]+)%", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 60.0  # chance: 25
