"""The command line of training: files, resume, interruption, errors."""

import json
import math
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gatkernels import cli
from gatkernels.experiments import jobs, runs
from gatkernels.experiments.batches import build_graph
from gatkernels.experiments.training import Training


def run(*args):
    return cli.main([str(arg) for arg in args])


@pytest.fixture
def train(data_folder):
    """``gatkernels train`` on small files."""
    return lambda *args: run("train", *args, "--data", data_folder)


def metrics_of(folder):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads((Path(folder) / "metrics.json").read_text(), parse_constant=refuse)


def curves_of(folder):
    return [entry["curves"] for entry in metrics_of(folder)["runs"]]


def test_train_writes_its_files(train, capsys, data_folder):
    assert train("cora", "--epochs", 3, "--hidden", 4) == 0
    text = capsys.readouterr().out
    assert "data: Cora from --data" in text
    assert "epoch 3  loss" in text
    assert "ms per epoch" in text
    folder = Path("runs/cora-gat")
    names = {"checkpoint.pt", "metrics.json", "curves.png", "state.pt"}
    assert {path.name for path in folder.iterdir()} == names
    metrics = metrics_of(folder)
    assert metrics["config"]["hidden"] == 4
    assert metrics["config"]["patience"] == 100
    assert metrics["settings"]["seeds"] == [0]
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["summary"]["test_score_std"] is None
    (only,) = metrics["runs"]
    assert [len(curve) for curve in only["curves"].values()] == [3] * 4
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "args", [("cora",), ("ppi", "--model", "gatv2"), ("citeseer", "--model", "gcn"), ("photo",)]
)
def test_load_run(args, train, capsys, data_folder):
    assert train(*args, "--epochs", 3, "--hidden", 4, "--seed", 2, "--out", "out") == 0
    loaded = runs.load_run("out")
    data = loaded.dataset
    assert loaded.seed == 2
    assert torch.equal(data.train_mask, data.with_split(2).train_mask)
    batch = Training(loaded.preset, data).batches.part("test")
    with torch.no_grad():
        logits = loaded.model(batch.x, batch.graph)
    part, whole = batch.loss(logits)[1].tolist()
    assert part / whole == pytest.approx(loaded.history["test_score"])
    fresh = Training(loaded.preset, data, seed=2).model.state_dict()
    start = loaded.untrained_model().state_dict()
    assert all(torch.equal(start[name], fresh[name]) for name in fresh)
    graph = build_graph(data.edge_index, data.num_nodes)
    assert loaded.model(data.x, graph).shape == (data.num_nodes, data.num_classes)


def test_load_run_says_what_is_wrong(train, data_folder, tmp_path, capsys):
    assert train("cora", "--epochs", 1, "--hidden", 4, "--out", "out") == 0
    out = Path("out")
    with pytest.raises(runs.RunError, match=r"absent: not the folder of a run: metrics\.json"):
        runs.load_run("absent")
    good = torch.load(out / "checkpoint.pt")
    torch.save(good | {"config": good["config"] | {"hidden": 5}}, out / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="do not fit the network: size mismatch for convs"):
        runs.load_run(out)
    (out / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(runs.RunError, match=r"checkpoint\.pt: cannot be read"):
        runs.load_run(out)
    torch.save(good | {"format": 99}, out / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="not written by this version"):
        runs.load_run(out)
    torch.save(good, out / "checkpoint.pt")
    labels = data_folder / "planetoid" / "Cora" / "raw" / "ind.cora.ty"
    labels.write_bytes(
        (data_folder / "planetoid" / "CiteSeer" / "raw" / "ind.citeseer.ty").read_bytes()
    )
    tests = labels.with_name("ind.cora.test.index")
    tests.write_text("\n".join(reversed(tests.read_text().split())))
    with pytest.raises(runs.RunError, match="trained on other data"):
        runs.load_run(out)


def test_seeds(train, capsys):
    assert train("cora", "--epochs", 2, "--seed", 5, "--seeds", 2, "--out", "out") == 0
    assert "over 2 seeds" in capsys.readouterr().out
    metrics = metrics_of("out")
    scores = [entry["test_score"] for entry in metrics["runs"]]
    assert [entry["seed"] for entry in metrics["runs"]] == [5, 6]
    assert metrics["summary"]["test_score_mean"] == pytest.approx(np.mean(scores))
    assert metrics["summary"]["test_score_std"] == pytest.approx(np.std(scores, ddof=1))


def test_quiet(train, capsys):
    assert train("cora", "--epochs", 1, "--quiet") == 0
    text = capsys.readouterr().out
    assert "loss" not in text
    assert "test accuracy" in text


def interrupt_at(monkeypatch, seed, epoch):
    """Send Ctrl-C to ourselves while an epoch runs."""
    step = Training.step

    def interrupted_step(self):
        if self.seed == seed and self.epoch + 1 == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Training, "step", interrupted_step)


@pytest.mark.parametrize("data", ["cora", "ppi"])
def test_interrupt_saves_and_resume_goes_on(data, train, monkeypatch, capsys):
    args = [data, "--epochs", 6, "--hidden", 4, "--seeds", 3]
    assert train(*args, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, seed=1, epoch=3)
        assert train(*args, "--out", "cut") == 130
    text = capsys.readouterr().out
    assert "stopped by Ctrl-C: 1 of 3 runs finished; seed 1 is saved as of epoch 3" in text
    assert text.endswith("the same command with --resume goes on from there\n")
    before = {path.name: path.read_bytes() for path in Path("cut").iterdir()}
    assert train(*args, "--out", "cut") == 2
    assert capsys.readouterr().err == (
        "gatkernels train: error: cut holds an interrupted training, of seed 1 after epoch 3: go "
        "on with --resume, or name another folder with --out\n"
    )
    assert {path.name: path.read_bytes() for path in Path("cut").iterdir()} == before
    assert [entry["stop"] for entry in metrics_of("cut")["runs"]] == ["epochs", "interrupted"]
    assert [entry["epochs"] for entry in metrics_of("cut")["runs"]] == [6, 3]
    assert train(*args, "--out", "cut", "--resume") == 0
    assert "resuming seed 1 at epoch 3" in capsys.readouterr().out
    assert curves_of("cut") == curves_of("whole")
    scores = [[e["test_score"] for e in metrics_of(out)["runs"]] for out in ("cut", "whole")]
    assert scores[0] == scores[1]


def test_second_interrupt_stops_at_once(train, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "SAVE_SECONDS", 0.0)
    step = Training.step

    def impatient_step(self):
        if self.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", impatient_step)
        assert train("cora", "--epochs", 4, "--out", "out") == 130
    assert train("cora", "--epochs", 4, "--out", "out", "--resume") == 0
    assert "resuming seed 0 at epoch 2" in capsys.readouterr().out


def test_resume_for_longer(train, capsys):
    assert train("cora", "--epochs", 6, "--out", "whole") == 0
    assert train("cora", "--epochs", 4, "--out", "out") == 0
    assert train("cora", "--epochs", 6, "--out", "out", "--resume") == 0
    assert curves_of("out") == curves_of("whole")
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert train("cora", "--epochs", 6, "--out", "out", "--resume") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["nothing to resume in out: it is finished"]
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    (Path("out") / "metrics.json").unlink()  # as where it was killed before it was written
    assert train("cora", "--epochs", 6, "--out", "out", "--resume") == 0
    assert curves_of("out") == curves_of("whole")


def test_resume_with_more_seeds_and_with_fewer(train, capsys):
    args = ["cora", "--epochs", 2, "--hidden", 4]
    assert train(*args, "--seeds", 3, "--out", "whole") == 0
    assert train(*args, "--seeds", 2, "--out", "out") == 0
    assert train(*args, "--seeds", 3, "--out", "out", "--resume") == 0
    assert curves_of("out") == curves_of("whole")
    assert train(*args, "--seeds", 1, "--out", "out", "--resume") == 0
    assert "nothing to resume in out: all 2 runs are finished" in capsys.readouterr().out
    assert curves_of("out") == curves_of("whole")


def test_resume_of_another_run_is_refused(train, capsys):
    assert train("cora", "--epochs", 1, "--out", "out") == 0
    before = (Path("out") / "metrics.json").read_bytes()
    for args, message in (
        (["cora", "--hidden", 4], "trained with other hidden (8, not 4)"),
        (["cora", "--seed", 3], "trained with other seeds ([0], not [3])"),
        (["citeseer"], "trained with other dataset (cora, not citeseer)"),
        (["cora", "--out", "empty"], "nothing to resume, no state.pt there"),
    ):
        assert train("--out", "out", "--resume", *args) == 2
        assert message in capsys.readouterr().err
    assert (Path("out") / "metrics.json").read_bytes() == before
    assert not Path("empty").exists()


def test_tensorboard(train):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train("cora", "--epochs", 3, "--out", "out", "--tensorboard", "--quiet") == 0
    events = loader.EventAccumulator("out/tensorboard/seed-0")
    events.Reload()
    names = {"loss/train", "loss/val", "score/train", "score/val"}
    assert set(events.Tags()["scalars"]) == names
    (curves,) = curves_of("out")
    logged = [event.value for event in events.Scalars("loss/val")]
    np.testing.assert_allclose(logged, curves["val_loss"], rtol=1e-5)


def test_lost_values_stay_valid_json(train):
    assert train("cora", "--epochs", 2, "--lr", "1e38", "--quiet") == 0
    assert metrics_of("runs/cora-gat")["runs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["core"], "unknown data set 'core'; choose from cora"),
        (["cora", "--model", "gan"], "unknown model 'gan'; choose from gat, gatv2"),
        (["cora", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["cora", "--seed", "-1"], "seed must lie in"),
        (["cora", "--monitor", "f1"], "monitor must be one of acc, loss"),
        (["cora", "--dropout", "1"], "dropout must lie in"),
        (["cora", "--lr", "nan"], "lr must be positive"),
        (["cora", "--epochs", "0"], "epochs must be at least 1"),
        (["cora", "--backend", "tpu"], "'backend' must be one of"),
        (["cora", "--device", "toaster"], "--device toaster cannot be used"),
        (["cora", "--device", "meta"], "--device meta cannot be used"),
        (["cora", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["pubmed"], "no PubMed there; expected ind.pubmed.x"),
        (["physics"], "no Coauthor Physics there; expected"),
        (["cora", "--out", "file"], "file"),
        (["cora", "--out", "file/below"], "file"),
        (["cora", "--batch", "3"], "--batch has no effect on cora, which is one graph"),
        (["cora", "--model", "mlp", "--heads", "2"], "--heads has no effect on mlp; it is for gat"),
        (["cora", "--model", "gcn", "--residual"], "--residual has no effect on gcn"),
        (["cora", "--model", "transformer", "--negative-slope", "0"], "it is for gat, gatv2"),
    ],
)
def test_bad_input_is_one_line(args, message, train, capsys):
    Path("file").write_text("")
    assert train(*args) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("gatkernels train: error:")
    assert "\n" not in error
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:.*is no longer used as device type")
def test_a_device_that_cannot_compute_is_one_line(capsys):
    """Every kind of device that torch has a name for."""
    with pytest.raises(RuntimeError) as unknown:
        torch.device("toaster")
    names = re.search(r"one of (.*) device type", str(unknown.value))[1].split(", ")
    assert {"cpu", "cuda", "meta", "xla"} <= set(names)
    for name in {*names} - {"cpu", "cuda", "mps", "xpu"}:  # which may be there
        for command in (["verify"], ["bench", "--quick"], ["train", "cora"], ["demo"]):
            assert run(*command, "--device", name) == 2
            error = capsys.readouterr().err
            assert f"--device {name} cannot be used: " in error
            assert error.count("\n") == 1


def test_no_network_is_one_line(no_download, no_wheel, capsys):
    assert run("train", "cora") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "no source has it (index unreachable); name a folder" in lines[0]


def test_a_folder_that_goes_away_is_one_line(train, monkeypatch, capsys):
    step = Training.step

    def careless_step(self):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").write_text("")
        return step(self)

    monkeypatch.setattr(Training, "step", careless_step)
    assert train("cora", "--epochs", 1, "--out", "out", "--quiet") == 2
    error = capsys.readouterr().err.strip()
    assert "File exists: 'out'" in error
    assert "\n" not in error


def test_a_disk_that_fills_up_is_one_line(train, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train("cora", "--epochs", 1, "--out", "out") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("args", [[], ["train"], ["fly"], ["train", "cora", "--epochs", "x"]])
def test_bad_usage_is_one_line(args, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_unknown_option_names_its_command(capsys):
    with pytest.raises(SystemExit):
        run("info", "--epochs", 3)
    error = (
        "gatkernels info: error: unrecognized arguments: --epochs 3 (see gatkernels info --help)"
    )
    assert capsys.readouterr().err.strip() == error


def test_missing_extra_is_one_line(data_folder, monkeypatch, capsys):
    for module in ("rich.console", "torch.utils.tensorboard"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert run("train", "cora", "--data", data_folder, "--tensorboard") == 2
            assert "pip install gatkernels[experiments]" in capsys.readouterr().err


def test_info(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert "reference" in text


def test_demo_has_a_folder_of_its_own(monkeypatch, data_folder):
    """A second demo does not write over what was trained on Cora."""
    folders = []
    monkeypatch.setattr(jobs, "execute", lambda job, seeds: (folders.append(job.out), True))
    assert run("demo", "--data", data_folder) == run("train", "cora", "--data", data_folder) == 130
    assert folders == [Path("runs/demo"), Path("runs/cora-gat")]


def test_demo_compares_the_layers(cora_like, capsys):
    from gatkernels import backends
    from gatkernels.experiments import demo

    if dict(backends.explain())["cpu"] is not None:
        pytest.skip("the compiled kernels are missing")
    rows = demo.compare_layers(cora_like, rounds=1)
    assert next(row.layer for row in rows) == "1433 -> 8 heads of 8"
    assert all(math.isfinite(row.speedup) for row in rows)
