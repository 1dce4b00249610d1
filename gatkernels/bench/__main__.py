"""`python -m gatkernels.bench`, the same as `gatkernels bench`."""

import sys

from gatkernels.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
