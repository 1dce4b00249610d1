"""``python -m gatkernels``."""

import sys

from gatkernels.cli import main

sys.exit(main())
