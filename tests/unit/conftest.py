import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_controller import fake, rc  # noqa: F401 - fixtures
