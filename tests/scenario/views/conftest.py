import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bare_cluster import BareCluster

from hpcviews.client.client import Client


@pytest.fixture(scope="module")
def cluster() -> Iterator[BareCluster]:
    """Three engines that the tests of a module share."""
    with BareCluster() as started:
        started.start_engines(3)
        yield started


@pytest.fixture
def rc(cluster: BareCluster) -> Iterator[Client]:
    """A client of those, which begins with clear namespaces."""
    client = cluster.connect(3)
    client[:].clear(block=True)
    yield client
    client.close()


@pytest.fixture
def mortal() -> Iterator[BareCluster]:
    """A cluster for one test, which may do it harm."""
    with BareCluster() as started:
        yield started
