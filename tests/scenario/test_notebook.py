"""Notebooks, executed in a real kernel against a running cluster: the example, and where output appears."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from household import Household

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "parallel_magics.ipynb"

CELL_S_MAX = 60


@pytest.fixture
def cluster(household: Household, monkeypatch: pytest.MonkeyPatch) -> Iterator[Household]:
    """Two engines, and directories of the test's own for everything that Jupyter and matplotlib write."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(household.root / name.lower()))
    name = household.start("--n", "2", "--launcher", "local")
    yield household
    household.run("stop", name)


# What other packages warn of while they run a kernel is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def execute(notebook: Any, allow_errors: bool = False) -> list[Any]:
    """Run all cells; the outputs of each code cell."""
    nbclient.NotebookClient(notebook, timeout=CELL_S_MAX, kernel_name="python3", allow_errors=allow_errors).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def write(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def text_of(outputs: Any, name: str = "stdout") -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


def values_of(outputs: Any) -> list[str]:
    return [o.data["text/plain"] for o in outputs if o.output_type in ("display_data", "execute_result")]


def test_the_example_runs_and_shows_a_figure_made_on_an_engine(cluster: Household) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    outputs = execute(notebook)

    ids, _, printed, _, drawn, sent, result, _ = outputs
    assert values_of(ids) == ["[0, 1]"]
    lines = sorted(text_of(printed).splitlines())
    assert [line.split(" process ")[0] for line in lines] == ["[stdout:0]", "[stdout:1]"]
    assert [line.split(": ")[-1] for line in lines] == ["899 images", "898 images"]
    assert values_of(drawn)[-1].endswith(": 3"), "digit 3 is the most common one"
    assert "AsyncResult" in values_of(sent)[0]
    assert [float(value.split(": ")[1]) > 0.85 for value in values_of(result)] == [True, True]

    (image,) = [output.data["image/png"] for output in drawn if "image/png" in output.get("data", {})]
    data = base64.b64decode(image)
    assert data.startswith(b"\x89PNG")
    check_picture(data)


def check_picture(data: bytes) -> None:
    import io

    import numpy as np
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(data))[..., :3]
    assert pixels.shape[0] > 200 and pixels.shape[1] > 500
    for fifth in np.array_split(pixels, 5, axis=1):
        assert 0.02 < (fifth < 0.9).any(axis=2).mean() < 0.98


def test_output_appears_below_the_cell_it_belongs_to(cluster: Household) -> None:
    _, first, second, third, bar = execute(
        write(
            "import hpcviews\nrc = hpcviews.Client()\nrc.ids",
            "%px print('first')",
            "%%px\nprint('second')\n6 * 7",
            "%px print('third')",
            "%%px --progress-after 0\nimport time\ntime.sleep(0.3)",
        )
    )
    assert sorted(text_of(first).splitlines()) == ["[stdout:0] first", "[stdout:1] first"]
    assert sorted(text_of(second).splitlines()) == ["[stdout:0] second", "[stdout:1] second"]
    assert [value.split(": ")[1] for value in values_of(second)] == ["42", "42"]
    assert sorted(text_of(third).splitlines()) == ["[stdout:0] third", "[stdout:1] third"]
    assert "2/2" in "".join(values_of(bar)) and not text_of(bar)


def test_errors_autopx_and_bars_in_a_notebook(cluster: Household) -> None:
    _, failed, enabled, there, disabled, here, waited = execute(
        write(
            "import hpcviews, time\nrc = hpcviews.Client()",
            "%px 1 / 0",
            "%autopx",
            "where = 'there'\nprint(where)",
            "%autopx",
            "print(rc[:]['where'], 'where' in globals())",
            "rc[:].apply_async(time.sleep, 0.2).wait_interactive()\nrc.wait_for_engines(2, interactive=True)",
        ),
        allow_errors=True,
    )
    assert text_of(failed, "stderr").count("ZeroDivisionError: division by zero") == 2
    (error,) = [output for output in failed if output.output_type == "error"]
    assert (error.ename, error.evalue) == ("AlreadyDisplayedError", "2 errors")
    assert text_of(enabled) == "%autopx enabled\n" and text_of(disabled) == "%autopx disabled\n"
    assert sorted(text_of(there).splitlines()) == ["[stdout:0] there", "[stdout:1] there"]
    assert text_of(here) == "['there', 'there'] False\n"
    assert [value.count("2/2") for value in values_of(waited)] == [1, 1]
