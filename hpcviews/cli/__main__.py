"""``python -m hpcviews.cli``: the command line where the command ``hpcviews`` is not on PATH."""

import sys

from hpcviews.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
