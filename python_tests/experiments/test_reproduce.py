"""``gatkernels reproduce``: the table, its files, and what it says of the published values."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gatkernels import cli
from gatkernels.experiments import reproduce
from gatkernels.experiments.presets import get_preset
from gatkernels.experiments.training import Training


def run(*args):
    return cli.main(["reproduce", *map(str, args)])


@pytest.fixture
def short_runs(monkeypatch):
    """Every preset trains for three epochs."""
    monkeypatch.setattr(
        reproduce, "get_preset", lambda *cell: get_preset(*cell).with_options(epochs=3, hidden=4)
    )


def cells_of(page):
    """The text of each row of the page's table."""
    rows = []

    class Reader(HTMLParser):
        open_cell = False

        def handle_starttag(self, tag, attrs):
            if tag == "tr":
                rows.append([])
            if tag in ("td", "th"):
                rows[-1].append("")
                self.open_cell = True

        def handle_endtag(self, tag):
            self.open_cell = self.open_cell and tag not in ("td", "th")

        def handle_data(self, data):
            if self.open_cell:
                rows[-1][-1] += data

    Reader().feed(page)
    return rows


def test_table(data_folder, short_runs, capsys):
    args = ["--datasets", "cora", "ppi", "photo", "--models", "gat", "mlp", "--seeds", 2]
    assert run(*args, "--data", data_folder, "--quiet", "--out", "out") == 0
    results = json.loads(Path("out/results.json").read_text())
    assert results["settings"]["seeds"] == [0, 1]
    names = [(cell["dataset"]["name"], cell["model"]) for cell in results["cells"]]
    expected = [(name, model) for name in ("cora", "ppi", "photo") for model in ("gat", "mlp")]
    assert names == expected
    for cell in results["cells"]:
        scores = [entry["test_score"] for entry in cell["runs"]]
        assert cell["summary"]["test_score_mean"] == pytest.approx(sum(scores) / 2)
        assert "curves" not in cell["runs"][0]
    rows = reproduce.rows(results)
    assert rows[0][0] == "Cora"
    assert rows[0][2] == "83.0 ± 0.7"
    assert rows[4][0] == "Amazon Photo (*)"
    assert cells_of(Path("out/results.html").read_text()) == [list(reproduce.COLUMNS), *rows]
    text = Path("out/results.md").read_text()
    for row in rows:
        assert "| " + " | ".join(row) + " |" in text
    assert "on the rows whose labels are exact" in text
    assert "A split of our own" in text
    assert Path("out/ppi-mlp/metrics.json").is_file()
    assert "wrote results.json, results.md, results.html to out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (0.824, 0.7, " (-0.6, within 1 std)"),
        (0.837, 0.7, " (+0.7, within 1 std)"),
        (0.822, 0.7, " (-0.8, outside 1 std)"),
        (0.822, None, " (-0.8)"),
    ],
)
def test_verdict(mean, std, expected):
    published = {"mean": 83.0, "std": std, "source": ""}
    assert reproduce.verdict({"test_score_mean": mean}, published) == expected
    assert reproduce.verdict({"test_score_mean": mean}, None) == ""


def test_interrupted_table_keeps_what_is_done(data_folder, short_runs, monkeypatch, capsys):
    step = Training.step

    def interrupted_step(self):
        if self.preset.model == "gcn":
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "step", interrupted_step)
    args = ["--datasets", "cora", "--models", "gat", "gcn", "mlp", "--seeds", 1]
    assert run(*args, "--data", data_folder, "--quiet", "--out", "out") == 130
    assert capsys.readouterr().out.endswith("with --resume goes on from there\n")
    results = json.loads(Path("out/results.json").read_text())
    assert [cell["model"] for cell in results["cells"]] == ["gat"]
    before = results["cells"][0]
    monkeypatch.setattr(Training, "step", step)
    trained = []
    train = reproduce.jobs.execute

    def watched(job, seeds):
        trained.append(job.preset.model)
        return train(job, seeds)

    monkeypatch.setattr(reproduce.jobs, "execute", watched)
    assert run(*args, "--data", data_folder, "--quiet", "--out", "out", "--resume") == 0
    results = json.loads(Path("out/results.json").read_text())
    assert [cell["model"] for cell in results["cells"]] == ["gat", "gcn", "mlp"]
    assert results["cells"][0] == before
    assert trained == ["gcn", "mlp"]
    more = ["--datasets", "photo", "--models", "gat", "--seeds", 2, "--data", data_folder]
    assert run(*more, "--quiet", "--out", "out", "--resume") == 0
    cells = json.loads(Path("out/results.json").read_text())["cells"]
    names = [(cell["dataset"]["name"], cell["model"], len(cell["runs"])) for cell in cells]
    assert names == [*(("cora", m, 1) for m in ("gat", "gcn", "mlp")), ("photo", "gat", 2)]
    Path("out/results.json").write_text("[]")
    assert run(*args, "--data", data_folder, "--out", "out", "--resume") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--datasets", "cora", "core"], "unknown data set 'core'"),
        (["--models", "gan"], "unknown model 'gan'"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--out", "file"], "file"),
        (["--datasets", "pubmed"], "no PubMed there"),
    ],
)
def test_bad_input_is_one_line(args, message, data_folder, capsys):
    Path("file").write_text("")
    assert run("--data", data_folder, *args) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
