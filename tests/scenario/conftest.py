import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from household import Household


@pytest.fixture
def household(monkeypatch: pytest.MonkeyPatch) -> Iterator[Household]:
    """Clusters of this test only; at its end nothing of them may be left."""
    made = Household(monkeypatch)
    try:
        yield made
        made.assert_nothing_left()
    finally:
        made.close()
