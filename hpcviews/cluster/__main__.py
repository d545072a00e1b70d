"""``python -m hpcviews.cluster``: the controller's process. Started by `Cluster`, not by hand."""

import sys

from hpcviews.cluster.app import main
from hpcviews.errors import UsageError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        sys.exit(str(error))
