"""``gatkernels partition``: every edge goes to its two owners, and nothing half written stays."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from gatkernels import cli
from gatkernels.distributed import files, stream
from gatkernels.distributed.share import owner_of

NODES, EDGES = 300, 5000


def edges_of(kind=np.int64):
    """Parallel edges, self loops, a hub, and nodes without edges."""
    rng = np.random.default_rng(0)
    edges = rng.integers(0, NODES - 20, (2, EDGES), dtype=kind)
    edges[1, :900] = 7
    edges[:, 1000:1050] = edges[:, 1050:1100]
    edges[1, 2000:2050] = edges[0, 2000:2050]
    return edges


@pytest.fixture
def edge_file(tmp_path):
    np.save(tmp_path / "edges.npy", edges_of())
    return tmp_path / "edges.npy"


def run(*args):
    return cli.main(["partition", *map(str, args)])


def shares(folder, parts):
    return [files.read_share(folder, rank, parts) for rank in range(parts)]


def check(edges, folder, parts):
    """The shares are those of the whole graph, edges in the order of their ids."""
    manifest = files.read_manifest(folder)
    edges = torch.from_numpy(edges.astype(np.int64))
    found = shares(folder, parts)
    assert torch.cat([share.nodes for share in found]).sort().values.equal(torch.arange(NODES))
    for rank, share in enumerate(found):
        assert (share.num_nodes, share.num_edges) == (NODES, edges.shape[1])
        assert owner_of(share.owners, share.nodes).eq(rank).all()
        assert share.nodes.equal(share.nodes.sort().values)
        for side, own, ids in (
            (0, share.out_edges, share.out_ids),
            (1, share.in_edges, share.in_ids),
        ):
            mine = (owner_of(share.owners, edges[side]) == rank).nonzero().flatten()
            assert ids.equal(mine)
            assert own.equal(edges[:, mine])
        part = manifest.parts[rank]
        assert part.nodes == len(share.nodes)
        halo = [
            set(own.flatten().tolist()) - set(share.nodes.tolist())
            for own in (share.in_edges, share.out_edges)
        ]
        assert part.halo == (len(halo[0]), len(halo[1]))
    return found


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("method", stream.METHODS)
def test_every_edge_goes_to_its_owners(method, parts, edge_file, tmp_path, monkeypatch, capsys):
    if method == "metis":
        pytest.importorskip("pymetis")
    monkeypatch.setattr(stream, "EDGES", 512)
    args = (edge_file, "--nodes", NODES, "--parts", parts, "--method", method)
    assert run(*args, "--out", tmp_path / "out") == 0
    found = check(edges_of(), tmp_path / "out", parts)
    text = capsys.readouterr()
    assert "rho" in text.out
    assert f"wrote {parts} parts" in text.out
    assert "dealing edges ..." in text.err
    if method == "range":
        ends = torch.stack([share.nodes[[0, -1]] for share in found])
        assert (ends[:, 1] - ends[:, 0] + 1).equal(torch.tensor([len(s.nodes) for s in found]))
    sizes = [share.in_edges.shape[1] + share.out_edges.shape[1] for share in found]
    if method != "random":
        assert max(sizes) < 2 * EDGES / parts + 1200  # of one hub
    else:
        assert max(len(share.nodes) for share in found) < 2 * NODES / parts + 30


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(kind, order, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "EDGES", 999)
    np.save(tmp_path / "edges.npy", np.asarray(edges_of(kind), order=order))
    stream.partition_file(tmp_path / "edges.npy", NODES, 3, "range", tmp_path / "out")
    check(edges_of(), tmp_path / "out", 3)


@pytest.mark.parametrize("method", stream.METHODS)
@pytest.mark.parametrize(("nodes", "count"), [(0, 0), (5, 0), (2, 3)])
def test_small_graphs(method, nodes, count, tmp_path):
    if method == "metis":
        pytest.importorskip("pymetis")
    edges = np.ones((2, count), np.int64)
    np.save(tmp_path / "edges.npy", edges)
    stream.partition_file(tmp_path / "edges.npy", nodes, 4, method, tmp_path / "out")
    found = shares(tmp_path / "out", 4)
    assert sum(len(share.nodes) for share in found) == nodes
    assert sum(share.in_edges.shape[1] for share in found) == count
    assert all(share.owners.numel() in (nodes, 5) for share in found)


def test_the_seed_decides_chance(edge_file, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        stream.partition_file(edge_file, NODES, 3, "random", tmp_path / name, seed)
    a, b, c = (files.read_share(tmp_path / name, 0, 3).nodes for name in "abc")
    assert a.equal(b)
    assert not a.equal(c)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 2), np.int64), r"must have shape \[2, num_edges\], got \(3, 2\); save"),
        (np.zeros(4, np.int64), r"must have shape \[2, num_edges\], got \(4,\)"),
        (np.zeros((2, 4)), "must have dtype int32 or int64, got float64"),
        (np.zeros((2, 4), ">i8"), "must have dtype int32 or int64, got >i8"),
        (np.array([[0, 1, 2], [0, 300, 2]]), r"edges\[1\]' holds node id 300 at position 1, but"),
        (np.array([[0, 1, -2], [0, 30, 2]]), r"edges\[0\]' holds node id -2 at position 2, but"),
        (b"\x93NUMPY nonsense", "cannot be read as a NumPy array"),
        (b"", "cannot be read as a NumPy array"),
        (None, "No such file"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "edges.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    assert run(path, "--nodes", NODES, "--parts", 2, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gatkernels partition: error:")
    assert re.search(message, error)
    assert {file.name for file in tmp_path.iterdir()} <= {"edges.npy"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--parts", "0"], "'parts' must lie in [1, 32768), got 0"),
        (["--parts", "99999"], "'parts' must lie in [1, 32768), got 99999"),
        (["--nodes", "-1"], "'num_nodes' must not be negative, got -1"),
        (["--nodes", str(2**31)], "'num_nodes' must be below 2^31"),
        (["--out", "."], "is there already; name another folder or remove it"),
    ],
)
def test_wrong_choices_are_one_line(args, message, edge_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(edge_file, "--nodes", NODES, "--parts", 2, "--out", "out", *args) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["edges.npy"]


def test_an_empty_folder_is_filled(edge_file, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(edge_file, "--nodes", NODES, "--parts", 2, "--out", tmp_path / "out") == 0
    check(edges_of(), tmp_path / "out", 2)


def test_a_disk_that_fills_up(edge_file, tmp_path):
    """By a limit on the size of files, of another process: this one has to go on."""
    code = (
        "import resource, sys\n"
        "from gatkernels import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"sys.exit(cli.main(['partition', {str(edge_file)!r}, '--nodes', '{NODES}', '--parts', "
        f"'2', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"gatkernels partition: error: \[Errno 27\] File too large: .*in_(src|ids)", last
    )
    assert [file.name for file in tmp_path.iterdir()] == ["edges.npy"]


def test_a_disk_that_is_full_already(edge_file, tmp_path, monkeypatch, capsys):
    usage = stream.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run(edge_file, "--nodes", NODES, "--parts", 2, "--out", tmp_path / "out") == 2
    assert re.search(r"0\.00 GiB are needed, 0\.00 GiB are free", capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["edges.npy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number, edge_file, tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "from gatkernels import cli\n"
        "from gatkernels.distributed import stream\n"
        # which a process that was started in the background ignores
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"stream._finish = lambda *_: (os.kill(os.getpid(), {int(number)}), time.sleep(30))\n"
        f"sys.exit(cli.main(['partition', {str(edge_file)!r}, '--nodes', '{NODES}', '--parts', "
        f"'2', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "interrupted"
    assert [file.name for file in tmp_path.iterdir()] == ["edges.npy"]


@pytest.fixture
def folder(edge_file, tmp_path):
    stream.partition_file(edge_file, NODES, 2, "random", tmp_path / "out")
    return tmp_path / "out"


def test_damage_is_found(folder):
    (folder / "part-00000" / "in_src").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"in_src: 0 bytes, expected [\d,]+: not copied to its end"
    ):
        files.read_share(folder, 0, 2)
    path = folder / "part-00001" / "out_ids"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"out_ids: not the file that was written \(SHA-256"):
        files.read_share(folder, 1, 2)
    (folder / "owners").write_bytes((folder / "owners").read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"owners: not the file that was written"):
        files.read_share(folder, 1, 2)
    (folder / "owners").unlink()
    with pytest.raises(FileNotFoundError, match=r"owners: missing; the manifest names it"):
        files.read_share(folder, 1, 2)


@pytest.mark.parametrize("method", ["range", "random"])
def test_sizes_that_a_manifest_claims_take_no_memory(method, edge_file, tmp_path):
    stream.partition_file(edge_file, NODES, 2, method, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    part = content["parts"][0]
    part["in_edges"] = 10**15
    for name in ("in_src", "in_dst", "in_ids"):
        part["columns"][name]["count"] = 10**15
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"in_src: [\d,]+ bytes, expected [\d,]+: not copied"):
        files.read_share(tmp_path / "out", 0, 2)
    part["columns"]["in_src"]["count"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"not written by this version .*edges in columns of \[5"):
        files.read_share(tmp_path / "out", 0, 2)


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(
        ValueError, match="holds 2 parts, but there are 3 processes; start 2, or wr"
    ):
        files.read_share(folder, 0, 3)
    with pytest.raises(FileNotFoundError, match=r"no partitioned graph, manifest\.json is missing"):
        files.read_share(tmp_path, 0, 2)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match=r"not written by this version .*format 99, expected 1"):
        files.read_share(folder, 0, 2)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not written by this version"):
        files.read_share(folder, 0, 2)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: cannot be read"):
        files.read_share(folder, 0, 2)


def test_memory_does_not_grow_with_the_edges(tmp_path):
    """How much the peak of a fresh process grows from 100,000 edges to 4 millions."""
    paths = []
    for edges in (100_000, 4_000_000):
        paths.append(tmp_path / f"{edges}.npy")
        array = np.lib.format.open_memmap(paths[-1], "w+", np.int32, (2, edges))
        array[:] = np.random.default_rng(0).integers(0, 1000, (2, edges), dtype=np.int32)
        del array
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from gatkernels.distributed import stream\n"
        "stream.EDGES = 1 << 16\n"
        f"for path in {[str(path) for path in paths]}:\n"
        "    stream.partition_file(Path(path), 1000, 4, 'range', Path(path + '.parts'))\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    few, many = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert (many - few) * unit < 16 << 20  # all columns take 96 MB
