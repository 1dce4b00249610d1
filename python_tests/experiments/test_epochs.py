"""The comparison of epochs: equal networks, one loop, and what is printed of it."""

import json
from pathlib import Path

import pytest

from gatkernels.experiments import epochs


def test_both_networks_are_timed(data_folder, capsys):
    arguments = ["--datasets", "cora", "citeseer", "--epochs", "4", "--out", "out"]
    assert epochs.main([*arguments, "--data", str(data_folder)]) == 0
    results = json.loads(Path("out/epochs.json").read_text())
    names = [(entry["dataset"]["name"], entry["model"]) for entry in results["entries"]]
    assert names == [(name, model) for name in ("cora", "citeseer") for model in ("gat", "gatv2")]
    for entry in results["entries"]:
        assert entry["logit_difference"] < 1e-5
        ours, theirs = entry["gatkernels"], entry["pyg"]
        assert entry["ratio"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])
        assert ours["median_ms"] > 0
    text = capsys.readouterr().out
    for row in epochs.rows(results["entries"]):
        assert "| " + " | ".join(row) + " |" in text


def test_no_time_for_a_wrong_result(data_folder, monkeypatch):
    monkeypatch.setattr(epochs, "logit_difference", lambda *_: 0.5)
    with pytest.raises(RuntimeError, match="cora, gat: the logits of the two networks differ"):
        epochs.compare("cora", "gat", 1, data_folder)


@pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--datasets", "core"], ["--data", "no"]])
def test_bad_input_is_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        epochs.main(wrong)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
