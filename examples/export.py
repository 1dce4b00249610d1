"""A network compiled ahead of time for graphs of any size, into a package that is loaded and run.

The kernels are ops that `import gatkernels` registers, so the package is run from Python; a C++
program runs it through an embedded interpreter that has imported gatkernels.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from communities import communities
from torch.export import Dim

import gatkernels  # registers the ops, also where a package is only run
from gatkernels.models import GAT


def main() -> float:
    x, edges, _ = communities()
    model = GAT(16, 8, 4, heads=4).eval()
    nodes, links = Dim("nodes", min=2), Dim("links", min=2)
    with torch.no_grad():
        program = torch.export.export(model, (x, edges), dynamic_shapes=({0: nodes}, {1: links}))
        with TemporaryDirectory() as folder:
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "gat.pt2")
            )
            loaded = torch._inductor.aoti_load_package(package)
            other, more, _ = communities(nodes=900)  # another size than that of the export
            off = (loaded(other, more) - model(other, more)).abs().max().item()
    print(f"gatkernels {gatkernels.__version__}: off by {off:.1e} on another graph")
    return off


if __name__ == "__main__":
    main()
