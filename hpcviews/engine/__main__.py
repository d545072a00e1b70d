"""``python -m hpcviews.engine``: one engine. Started by a starter, not by hand."""

import sys

from hpcviews.engine.app import parse_options, run_engine
from hpcviews.errors import UsageError

if __name__ == "__main__":
    try:
        options, _ = parse_options(sys.argv[1:])
    except UsageError as error:
        sys.exit(str(error))
    run_engine(options)
