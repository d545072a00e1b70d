"""What `import hpcviews` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hpcviews
from hpcviews import errors


def test_every_name_is_there() -> None:
    for name in hpcviews.__all__:
        assert getattr(hpcviews, name) is not None
    assert set(hpcviews.__all__) <= set(dir(hpcviews))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hpcviews.nonsense


def test_every_error_is_a_public_name() -> None:
    ours = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HpcviewsError)
    }
    assert ours <= set(hpcviews.__all__)
    assert hpcviews.RemoteError is errors.RemoteError


def test_client_does_not_need_numpy_or_pandas() -> None:
    code = """
import sys
import hpcviews
from hpcviews.client import maps
hpcviews.Client, hpcviews.Reference
assert maps.join(maps.partition([1, 2, 3], 2)) == [1, 2, 3]
loaded = {"numpy", "pandas", "asyncio", "mpi4py", "IPython"}.intersection(sys.modules)
sys.exit(", ".join(loaded) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
