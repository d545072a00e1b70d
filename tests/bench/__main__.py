"""``python -m tests.bench``."""

import sys

from tests.bench.app import main

sys.exit(main(sys.argv[1:]))
