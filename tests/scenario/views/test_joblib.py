"""joblib's and scikit-learn's calls on engines: the same numbers, the same exceptions, one copy of big arguments."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from bare_cluster import BareCluster
from joblib import Parallel, delayed
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

import hpcviews
from hpcviews import Client, NoEnginesRegistered, RemoteError, SerializationError
from hpcviews.bridges.joblib import SHARED_BYTES_MIN, SharedArguments, count_bytes
from hpcviews.testing.wait import wait_until


@pytest.fixture
def backend(rc: Client) -> Iterator[Client]:
    rc.load_balanced_view().register_joblib_backend("hpcviews")
    with joblib.parallel_config("hpcviews"):
        yield rc


def whoami(_: int = 0) -> int:
    return os.getpid()


def fail_at(i: int, bad: int) -> int:
    if i == bad:
        raise ZeroDivisionError(f"at {i}")
    return i


def test_jobs_run_on_engines_and_results_come_in_order(backend: Client) -> None:
    pids = set(backend[:].apply_sync(os.getpid))
    assert Parallel()(delayed(pow)(i, 2) for i in range(500)) == [i**2 for i in range(500)]
    assert set(Parallel()(delayed(whoami)(i) for i in range(200))) <= pids
    assert list(Parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(50))) == [i**2 for i in range(50)]
    unordered = Parallel(return_as="generator_unordered")(delayed(pow)(i, 2) for i in range(50))
    assert sorted(unordered) == [i**2 for i in range(50)]
    assert Parallel()([]) == []


def test_effective_n_jobs_is_the_number_of_engines_unless_fewer_are_asked_for(backend: Client) -> None:
    assert [joblib.effective_n_jobs(n) for n in (-1, -2, -9, 1, 2, 50)] == [3, 2, 1, 1, 2, 3]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.effective_n_jobs(0)
    backend.load_balanced_view(targets=[1]).register_joblib_backend("one engine")
    with joblib.parallel_config("one engine"):
        assert joblib.effective_n_jobs(-1) == 1
        pid = backend[1].apply_sync(os.getpid)
        assert set(Parallel()(delayed(whoami)(i) for i in range(20))) == {pid}, "not in this process"


def test_n_jobs_limits_the_engines_that_are_used(backend: Client) -> None:
    pids = backend[:].apply_sync(os.getpid)
    with joblib.parallel_config("hpcviews", n_jobs=2):
        assert set(Parallel()(delayed(whoami)(i) for i in range(200))) <= set(pids[:2])
    assert set(Parallel(n_jobs=1)(delayed(whoami)(i) for i in range(5))) == {os.getpid()}


def test_no_engines_is_an_error_that_says_so(mortal: BareCluster) -> None:
    mortal.connect().load_balanced_view().register_joblib_backend("empty")
    with joblib.parallel_config("empty"), pytest.raises(NoEnginesRegistered, match="wait_for_engines"):
        Parallel()(delayed(pow)(i, 2) for i in range(5))


def test_the_original_exception_comes_with_the_engines_traceback(backend: Client) -> None:
    with pytest.raises(ZeroDivisionError, match="at 7") as caught:
        Parallel()(delayed(fail_at)(i, 7) for i in range(1000))
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteError) and "in fail_at" in remote.traceback
    # What had not started is withdrawn, and the same backend goes on working.
    assert Parallel()(delayed(pow)(i, 2) for i in range(5)) == [0, 1, 4, 9, 16]
    wait_until(lambda: not backend.outstanding, 10, "the rest of the jobs")


def test_what_cannot_be_pickled_ends_the_call(backend: Client) -> None:
    with pytest.raises(SerializationError, match="lock"):
        Parallel()(delayed(id)(threading.Lock() if i == 30 else i) for i in range(100))


def test_timeout_of_parallel_ends_the_call(backend: Client) -> None:
    with pytest.raises((TimeoutError, multiprocessing.TimeoutError)):
        Parallel(timeout=0.2)(delayed(time.sleep)(1000) for _ in range(3))
    assert backend[:].apply_async(int).get(20) == [0, 0, 0], "engines are interrupted, and free again"


def test_batches_grow_when_jobs_are_short(backend: Client) -> None:
    before = len(backend.history)
    Parallel(n_jobs=3)(delayed(abs)(i) for i in range(5000))
    automatic = len(backend.history) - before
    Parallel(n_jobs=3, batch_size=10)(delayed(abs)(i) for i in range(5000))
    assert automatic < 2500
    assert len(backend.history) - before - automatic >= 500


def nested(i: int) -> tuple[int, list[int]]:
    return os.getpid(), Parallel(n_jobs=2)(delayed(whoami)(k) for k in range(4))


def nested_by_name(i: int) -> list[int]:
    return Parallel(n_jobs=2, backend="hpcviews")(delayed(whoami)(k) for k in range(4))


def test_nested_calls_stay_on_their_engine(backend: Client) -> None:
    for pid, inner in Parallel()(delayed(nested)(i) for i in range(12)):
        assert set(inner) == {pid}
    engines = set(backend[:].apply_sync(os.getpid))
    for inner in Parallel()(delayed(nested_by_name)(i) for i in range(6)):
        assert len(set(inner)) == 1 and set(inner) <= engines


def test_cross_val_score_gives_what_it_gives_without_a_cluster(rc: Client) -> None:
    x, y = load_digits(return_X_y=True)
    alone = cross_val_score(SVC(gamma=0.001), x, y, cv=6)
    rc.load_balanced_view().register_joblib_backend()
    with joblib.parallel_config("hpcviews"):
        assert np.array_equal(cross_val_score(SVC(gamma=0.001), x, y, cv=6), alone)
    assert len(rc.history) >= 6


def test_grid_search_gives_what_it_gives_without_a_cluster(backend: Client) -> None:
    x, y = load_iris(return_X_y=True, as_frame=True)
    grid = {"C": [0.1, 1.0, 10.0], "solver": ["lbfgs", "newton-cg"]}
    before = len(backend.history)
    search = GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=5).fit(x, y)
    assert len(backend.history) > before
    with joblib.parallel_config("threading", n_jobs=1):
        alone = GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=5).fit(x, y)
    assert search.best_params_ == alone.best_params_
    assert np.array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])


def test_grid_search_over_a_parallel_estimator(backend: Client) -> None:
    x, y = load_iris(return_X_y=True)
    search = GridSearchCV(RandomForestClassifier(10, random_state=0, n_jobs=2), {"max_depth": [1, 3]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.9


def test_a_model_that_always_fails_is_reported_as_ever(backend: Client) -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="All the 4 fits failed"):
        GridSearchCV(Ridge(alpha=1.0), {"alpha": [-1.0, -2.0]}, cv=2).fit(x, y)


# ---------------------------------------------------------------- big arguments


def look(array: Any, i: int) -> tuple[int, float, bool]:
    writeable = array.flags.writeable if isinstance(array, np.ndarray) else False
    return os.getpid(), float(array[i].sum()), writeable


def test_a_big_argument_travels_to_each_engine_once(backend: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcviews.client.connection import Connection

    array = np.random.default_rng(0).random((60, 20_000))  # 9.6 MB
    sent = 0
    post = Connection.post

    def count(self: Connection, call: Any, seqs: range, messages: Any, frames: Any, function: Any = None) -> None:
        nonlocal sent
        sent += sum(map(len, frames))
        post(self, call, seqs, messages, frames, function)

    monkeypatch.setattr(Connection, "post", count)
    answers = Parallel(batch_size=1)(delayed(look)(array, i) for i in range(60))
    assert [total for _, total, _ in answers] == [float(row.sum()) for row in array]
    assert sent <= array.nbytes * 1.01, "with the first batch, and then as a part of the function"
    assert not answers[-1][2], "read-only, as every job of the engine has it"


def change_frame(frame: pd.DataFrame) -> tuple[list[str], float]:
    frame["new"] = 1.0
    return list(frame), float(frame["a"].sum())


def test_a_job_does_not_see_what_another_did_to_its_dataframe(backend: Client) -> None:
    frame = pd.DataFrame({"a": np.arange(200_000.0)})
    answers = Parallel(batch_size=1)(delayed(change_frame)(frame) for _ in range(20))
    assert answers == [(["a", "new"], float(frame["a"].sum()))] * 20


def add_all(matrix: Any) -> float:
    return float(matrix.sum())


def test_a_big_sparse_matrix_is_shared(backend: Client) -> None:
    matrix = scipy.sparse.random(1000, 4000, 0.1, format="csr", random_state=0)
    assert count_bytes(matrix) > SHARED_BYTES_MIN
    answers = Parallel(batch_size=1)(delayed(add_all)(matrix) for _ in range(10))
    assert answers == pytest.approx([matrix.sum()] * 10)


def test_arguments_are_shared_from_their_second_appearance_on(rc: Client) -> None:
    from joblib.parallel import BatchedCalls, SequentialBackend

    array = np.zeros(SHARED_BYTES_MIN, np.uint8)
    batch = BatchedCalls([(len, (array,), {})], (SequentialBackend(nesting_level=1), None))
    arguments = SharedArguments("hpcviews", rc.load_balanced_view())
    assert arguments.take_out(batch)[1] is batch
    runner, replaced = arguments.take_out(batch)
    assert runner.payload.nbytes > array.nbytes and replaced is not batch and batch.items[0][1][0] is array
    assert arguments.take_out(batch)[0] is runner
    arguments.clear()
    assert arguments.take_out(batch)[1] is batch


def test_bytes_are_counted_where_there_are_numbers() -> None:
    assert count_bytes(np.zeros(10)) == 80
    assert count_bytes(pd.DataFrame({"a": np.zeros(10), "data": np.zeros(10)})) == 160
    assert count_bytes(pd.Series(np.zeros(10))) == 80
    assert count_bytes(scipy.sparse.eye(10, format="csr")) == 80
    assert [count_bytes(value) for value in (None, 3, "text", [np.zeros(10)], np.zeros, object())] == [0] * 6


# ---------------------------------------------------------------- which cluster


def test_without_a_view_the_environments_cluster_is_used(
    cluster: BareCluster, rc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcviews.bridges import joblib as bridge

    made: list[Client] = []

    def connect() -> Client:
        made.append(cluster.connect(3))
        return made[-1]

    monkeypatch.setattr(bridge, "Client", connect)
    monkeypatch.setattr(bridge, "_default", None)
    hpcviews.register_joblib_backend("by environment")
    for _ in range(2):
        with joblib.parallel_config("by environment"):
            assert joblib.effective_n_jobs(-1) == 3
    assert len(made) == 1, "one client for the whole process"
    made[0].close()
    with joblib.parallel_config("by environment"):
        assert Parallel()(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
    assert len(made) == 2
    with joblib.parallel_config("by environment", view=rc.load_balanced_view(targets=[0])):
        assert joblib.effective_n_jobs(-1) == 1
