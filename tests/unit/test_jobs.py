"""Jobs of batch systems: scripts, what SLURM's answers mean, and what is concluded from them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcviews.cluster.batch import JobOrder, JobRequest, JobState, JobStatus, parse_walltime, render_walltime
from hpcviews.cluster.jobs import MISSING_GRACE_S, Jobs, JobWatch
from hpcviews.cluster.spec import ProbeOutput
from hpcviews.errors import LaunchError, PollFailed, SubmitRefused, UsageError
from hpcviews_launchers.slurm import SlurmScheduler
from hpcviews_launchers.slurm_states import parse_job, parse_record, parse_row

SLURM = SlurmScheduler()
GOLDEN = Path(__file__).parent / "golden"
NASTY = "a b'c\"d$HOME`x`;\\\n*"

EVERYTHING = JobRequest(
    nodes=2, engines_per_node=4, cpus_per_engine=8, gpus_per_engine=1, mem="16G", walltime_s=90_061, queue="main",
    account="phys", qos="high", constraint="a&b", reservation="r1", exclude="n[3-4]", nodelist="n[1-2]",
    dependency="afterok:12", job_name="my job", directives=("--licenses=x:1",), skip=("--open-mode",),
    prologue=("ulimit -n 4096",), modules=("python", "gcc/12"), conda="science",
)  # fmt: skip


def make_order(request: JobRequest = JobRequest(), cwd: str = "/home/u/work") -> JobOrder:  # noqa: B008 - frozen
    argv = ("/opt/python", "-m", "hpcviews.cluster", "--job", "/home/u/.hv/clusters/one")
    return JobOrder("hpcviews-one-1", 8, "/home/u/.hv/one.log", cwd, {"HPCVIEWS_HOME": "/home/u/.hv"}, argv, request)


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize(("name", "request_"), [("least", JobRequest()), ("everything", EVERYTHING)])
def test_slurm_script_is_as_it_was(name: str, request_: JobRequest) -> None:
    """To accept a new one, delete the file and run the test twice."""
    golden = GOLDEN / f"slurm-{name}.sh"
    script = SLURM.render(make_order(request_))
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(script)
        pytest.fail(f"{golden} was written; look at it")
    assert script == golden.read_text()


def test_script_survives_bash_with_any_path(tmp_path: Path) -> None:
    work = tmp_path / NASTY
    work.mkdir()
    argv = ("printf", "%s\\0", NASTY, "two")
    order = JobOrder(
        "x", 1, "/log", str(work), {"WHERE": NASTY}, ("sh", "-c", 'pwd; printf "%s|" "$WHERE" "$@"', *argv)
    )
    done = subprocess.run(["bash", "-c", SLURM.render(order)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{work}\n{NASTY}|%s\\0|{NASTY}|two|"


@pytest.mark.parametrize("field", ["queue", "mem", "job_name", "conda", "python"])
def test_line_break_in_an_option_is_refused(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        JobRequest(**{field: "a\n#SBATCH --account=other"}).check()  # type: ignore[arg-type]


def test_line_break_in_the_logs_path_is_refused() -> None:
    with pytest.raises(UsageError, match="--output"):
        SLURM.render(JobOrder("x", 1, "/a\nb", "/", {}, ("true",)))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (JobRequest(nodes=0), "nodes"),
        (JobRequest(walltime_s=-1), "walltime_s"),
        (JobRequest(conda="a", venv="b"), "both"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: JobRequest, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        request_.check()


def test_walltimes() -> None:
    for text, seconds in (
        ("90m", 5400),
        ("2h", 7200),
        ("30s", 30),
        ("1d", 86400),
        ("1:30:00", 5400),
        ("1-00:00:01", 86401),
    ):
        assert parse_walltime(text) == seconds
    assert render_walltime(90_061) == "25:01:01"
    for text in ("90", "", "1:30", "-5m", "1.5h"):
        with pytest.raises(UsageError, match="90m, 2h"):
            parse_walltime(text)


# ---------------------------------------------------------------- answers of SLURM 22.05


@pytest.mark.parametrize(
    ("row", "job", "state", "says"),
    [
        ("129|RUNNING|2026-11-22T18:54:17|node[1-2]|None", "129", JobState.RUNNING, "RUNNING on node[1-2]"),
        ("130|PENDING|N/A||JobHeldUser", "130", JobState.HELD, "PENDING (JobHeldUser)"),
        ("131|PENDING|2026-11-22T18:54:17||Priority", "131", JobState.PENDING,
         "PENDING (Priority), expected to start 2026-11-22T18:54:17"),
        ("132|PENDING|N/A||Nodes required for job are DOWN, DRAINED | or reserved", "132", JobState.PENDING,
         "PENDING (Nodes required for job are DOWN, DRAINED | or reserved)"),
        ("133|PENDING|N/A||DependencyNeverSatisfied", "133", JobState.HELD, "PENDING (DependencyNeverSatisfied)"),
        ("88|TIMEOUT|x|node1|TimeLimit", "88", JobState.TIMEOUT, "TIMEOUT (TimeLimit)"),
        ("89|COMPLETING|x|node1|None", "89", JobState.ENDING, "COMPLETING"),
        ("90|SOMETHING_NEW|x||None", "90", JobState.UNKNOWN, "SOMETHING_NEW"),
        ("91", "91", JobState.UNKNOWN, "unknown"),
    ],
)  # fmt: skip
def test_rows_of_squeue(row: str, job: str, state: JobState, says: str) -> None:
    found, status = parse_row(row)
    assert (found, status.state, status.render()) == (job, state, says)
    assert status.has_ended == (state is JobState.TIMEOUT)


def test_job_of_scontrol() -> None:
    text = (
        "JobId=124 JobName=a=b JobState=FAILED Reason=JobLaunchFailure ExitCode=0:9 ReqNodeList=(null) NodeList=node1"
    )
    status = parse_job(text)
    assert status is not None and status.state is JobState.FAILED
    assert status.render() == "FAILED (JobLaunchFailure), killed by signal 9"
    assert parse_job("slurm_load_jobs error") is None


def test_records_of_sacct() -> None:
    status = parse_record("12|CANCELLED by 1000|0:15|node1\n123|COMPLETED|0:0|node2\n", "12")
    assert status is not None and (status.state, status.exit) == (JobState.CANCELLED, "killed by signal 15")
    assert parse_record("123|COMPLETED|0:0|node2\n", "12") is None, "12 is not 123"


# ---------------------------------------------------------------- the core


class Commands:
    """Answers in order, and what was run."""

    def __init__(self, **answers: ProbeOutput):
        self.answers = answers
        self.argvs: list[Sequence[str]] = []

    def __call__(self, argv: Sequence[str], timeout_s: float) -> ProbeOutput:
        self.argvs.append(argv)
        return self.answers.get(argv[0], ProbeOutput(1, "", f"{argv[0]}: nothing known"))


NOT_THERE = ProbeOutput(1, "", "slurm_load_jobs error: Invalid job id specified")
SILENT = ProbeOutput(None, "", "no answer within 30 s")


def test_submitted_job_has_an_id() -> None:
    for out in ("90\n", "90;cluster\n", "some banner\n90\n"):
        assert Jobs(SLURM, Commands(sbatch=ProbeOutput(0, out, ""))).submit(Path("x"), "name") == "90"


@pytest.mark.parametrize(
    "answer", [SILENT, ProbeOutput(1, "", "sbatch: error: Socket timed out on send/recv operation")]
)
def test_submission_whose_answer_is_lost_is_looked_for(answer: ProbeOutput) -> None:
    commands = Commands(sbatch=answer, squeue=ProbeOutput(0, "91\n", ""))
    assert Jobs(SLURM, commands).submit(Path("x"), "hpcviews-one-1") == "91"
    assert "--name=hpcviews-one-1" in commands.argvs[-1]


@pytest.mark.parametrize(
    "answer", [ProbeOutput(0, "", ""), ProbeOutput(1, "", "Invalid partition name specified"), SILENT]
)
def test_submission_that_was_not_made_is_an_error(answer: ProbeOutput) -> None:
    with pytest.raises(SubmitRefused):
        Jobs(SLURM, Commands(sbatch=answer, squeue=ProbeOutput(0, "", ""))).submit(Path("x"), "name")


def test_many_jobs_are_asked_for_in_one_call() -> None:
    ids = [str(i) for i in range(100)]
    commands = Commands(squeue=ProbeOutput(0, "".join(f"{i}|RUNNING|x|n1|None\n" for i in ids), ""))
    found = Jobs(SLURM, commands).ask(ids)
    assert len(commands.argvs) == 1 and {s.state for s in found.values()} == {JobState.RUNNING}


def test_missing_job_is_forgotten_not_completed() -> None:
    assert Jobs(SLURM, Commands(squeue=NOT_THERE)).ask(["5"])["5"].state is JobState.FORGOTTEN


def test_history_tells_of_a_missing_job() -> None:
    history = ProbeOutput(0, "5|OUT_OF_MEMORY|0:125|n1\n", "")
    status = Jobs(SLURM, Commands(squeue=NOT_THERE, sacct=history)).ask(["5"])["5"]
    assert (status.state, status.word) == (JobState.FAILED, "OUT_OF_MEMORY")


@pytest.mark.parametrize(
    "answer", [SILENT, ProbeOutput(1, "", "slurm_load_jobs error: Unable to contact slurm controller")]
)
def test_silence_is_not_an_answer(answer: ProbeOutput) -> None:
    with pytest.raises(PollFailed):
        Jobs(SLURM, Commands(squeue=answer)).ask(["5"])


def test_failed_cancel_is_an_error() -> None:
    with pytest.raises(LaunchError, match="try again with `hpcviews stop`"):
        Jobs(SLURM, Commands(scancel=ProbeOutput(8, "", "Unable to contact slurm controller"))).cancel(["5"])


def test_watch_keeps_what_it_knew_through_silence_and_absence() -> None:
    watch = JobWatch()
    watch.on_answer(JobStatus(JobState.RUNNING), 1.0)
    watch.on_silence(2.0)
    assert watch.status.state is JobState.RUNNING and watch.silent_since == 2.0 and watch.running_since == 1.0
    watch.on_answer(JobStatus(JobState.FORGOTTEN), 3.0)
    assert watch.status.state is JobState.RUNNING and watch.silent_since is None
    watch.on_answer(JobStatus(JobState.FORGOTTEN), 3.0 + MISSING_GRACE_S)
    assert watch.status.state is JobState.FORGOTTEN


def test_watch_does_not_forget_an_end() -> None:
    watch = JobWatch()
    watch.on_answer(JobStatus(JobState.CANCELLED), 1.0)
    watch.on_answer(JobStatus(JobState.PENDING), 2.0)
    assert watch.status.state is JobState.CANCELLED
