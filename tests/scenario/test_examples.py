"""The examples, run as users run them; their numbers are checked against scikit-learn's own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# The slower of the two takes 4 s on 2 cores; the rest is for a machine that does something else as well.
RUN_S_MAX = 100


def run_example(name: str, *arguments: str, launcher: str, home: Path, n: int = 4) -> str:
    """What `hpcviews run` prints for it."""
    hpcviews = str(Path(sys.executable).with_name("hpcviews"))  # the command that pip installs
    command = [hpcviews, "run", "--n", str(n), "--launcher", launcher]
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        env=_environment(home),
        cwd=home,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment(home: Path) -> dict[str, str]:
    from hpcviews.environment import CLUSTER_VARIABLE, HOME_VARIABLE, get_environment

    environment = {k: v for k, v in get_environment().items() if k != CLUSTER_VARIABLE}
    # matplotlib keeps its font list in a directory of its own, and warns when it cannot.
    return {**environment, HOME_VARIABLE: str(home / "records"), "MPLCONFIGDIR": str(home / "matplotlib")}


def find_number(pattern: str, text: str) -> float:
    """The number in the brackets of `pattern`."""
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return float(found[1])


@pytest.mark.parametrize(("launcher", "n"), [("local", 4), ("mpiexec", 4), ("local", 1)])
def test_hello_views_prints_what_the_views_compute(launcher: str, n: int, tmp_path: Path) -> None:
    out = run_example("hello_views.py", launcher=launcher, home=tmp_path, n=n)
    lines = dict(line.split(":", 1) for line in out.splitlines() if ":" in line)
    engines, pids = re.fullmatch(r"engines (\[.*\]) are processes (\[.*\])", out.splitlines()[0]).groups()  # type: ignore[union-attr]
    assert ast.literal_eval(engines) == list(range(n))
    assert len(set(ast.literal_eval(pids))) == n
    assert f"y is {[42] * n}" in out
    sums = [part.sum() for part in np.array_split(np.arange(10), n)]
    assert ast.literal_eval(lines["sums of the parts"].strip()) == sums
    assert re.findall(r"\d+", lines["squares"]) == [str(i**2) for i in range(10)]
    assert ast.literal_eval(lines["cubes"].strip()) == [i**3 for i in range(10)]


def test_hello_views_is_shorter_than_25_lines() -> None:
    assert len((EXAMPLES / "hello_views.py").read_text().splitlines()) < 25


@pytest.mark.parametrize("launcher", ["local", "mpiexec"])
def test_digits_pca_finds_what_scikit_learn_finds(launcher: str, tmp_path: Path) -> None:
    picture = tmp_path / "digits and more.png"
    out = run_example("digits_pca.py", "--out", str(picture), launcher=launcher, home=tmp_path)

    assert "1797 handwritten digits of 8 x 8 pixels, scattered over 4 engines" in out
    shares = _shares_of_variance()
    for n in (2, 10, 30):
        printed = find_number(rf"([\d.]+)% by {n} components", out)
        assert printed == pytest.approx(100 * shares[:n].sum(), abs=0.06)

    k = int(find_number(r"best: k = (\d+)", out))
    kept = int(find_number(r"best: k = \d+ with (\d+) components", out))
    error = find_number(r"components, ([\d.]+)% of the digits wrong", out)
    # One digit of 1797 may fall differently where two votes or two distances tie.
    assert error == pytest.approx(100 * _error_of_scikit_learn(k, kept), abs=100 * 1.5 / 1797)

    who = r"engine (\d+) \((no MPI|rank \d+), (\S+), pid (\d+)\): (\d+) images, (\d+) settings"
    engines = re.findall(who, out)
    assert [int(engine[0]) for engine in engines] == [0, 1, 2, 3]
    ranks = [f"rank {i}" for i in range(4)] if launcher == "mpiexec" else ["no MPI"] * 4
    assert [engine[1] for engine in engines] == ranks
    assert len({engine[3] for engine in engines}) == 4
    assert [int(engine[4]) for engine in engines] == [450, 449, 449, 449]
    assert sum(int(engine[5]) for engine in engines) == find_number(r"(\d+) settings:", out)
    assert all(int(engine[5]) > 0 for engine in engines), f"an engine got no work:\n{out}"

    _check_picture(picture)


def _shares_of_variance() -> np.ndarray:
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    shares: np.ndarray = PCA().fit(load_digits().data).explained_variance_ratio_
    return shares


def _error_of_scikit_learn(k: int, kept: int) -> float:
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    images, labels = load_digits(return_X_y=True)
    fold = np.random.default_rng(0).permutation(len(images)) % 5  # as in the example
    points = PCA(kept, svd_solver="full").fit_transform(images)
    guesses = cross_val_predict(KNeighborsClassifier(k), points, labels, cv=PredefinedSplit(fold))
    return float(np.mean(guesses != labels))


def _check_picture(picture: Path) -> None:
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    height, width, _ = pixels.shape
    assert height >= 500 and width >= 1500
    # Each third holds a part of the picture: none is blank, none is one colour.
    for third in np.array_split(pixels, 3, axis=1):
        inked = (third < 0.9).any(axis=2).mean()
        assert 0.02 < inked < 0.98, f"{inked:.1%} of a third of the picture is inked"
        assert len(np.unique((third * 15).astype(int).reshape(-1, 3), axis=0)) > 30
