"""What a job sees, inside Hatoba and outside, with everything away."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hatoba
from hatoba.job_context import GAVE_WAY, MAX_LINE_BYTES, JobContext

CLIENT = Path(hatoba.__file__).parents[1]


@pytest.fixture
def attempt(tmp_path: Path) -> dict[str, str]:
    """The environment of an attempt."""
    directory = tmp_path / "attempt"
    for name in ("inputs/faces", "outputs", "checkpoints"):
        (directory / name).mkdir(parents=True)
    (directory / "params.json").write_text('{"lr": 0.01, "epochs": 3.0, "name": "x", "fast": true}')
    return {
        "HATOBA_ATTEMPT": "t-0123-0-2",
        "HATOBA_JOB": "projects/default/jobs/train-1",
        "HATOBA_INDEX": "4",
        "HATOBA_TASK_COUNT": "10",
        "HATOBA_ATTEMPT_NUMBER": "2",
        "HATOBA_DIR": str(directory),
        "HATOBA_SPOOL": str(directory / "spool.jsonl"),
        "HATOBA_PARAMS": str(directory / "params.json"),
        "HATOBA_INPUTS": str(directory / "inputs"),
        "HATOBA_OUTPUTS": str(directory / "outputs"),
        "HATOBA_CHECKPOINTS": str(directory / "checkpoints"),
    }


@pytest.fixture
def job(attempt: dict[str, str]) -> JobContext:
    """The context of that attempt."""
    return JobContext.from_environment(attempt)


def spooled(job: JobContext) -> list[dict[str, Any]]:
    assert job.spool is not None
    lines = [json.loads(line) for line in job.spool.read_text().splitlines()]
    assert all(isinstance(line.pop("t"), float) for line in lines)
    return lines


def test_the_attempt_is_read_from_the_environment(job: JobContext, attempt: dict[str, str]) -> None:
    assert (job.job, job.attempt) == ("projects/default/jobs/train-1", 2)
    assert (job.index, job.count) == (4, 10)
    assert job.params == {"lr": 0.01, "epochs": 3, "name": "x", "fast": True}
    assert isinstance(job.params["epochs"], int)
    assert job.inputs == {"faces": Path(attempt["HATOBA_INPUTS"]) / "faces"}
    assert job.outputs == Path(attempt["HATOBA_OUTPUTS"])
    assert job.latest_checkpoint is None


def test_metrics_and_progress_are_lines_of_the_spool(job: JobContext) -> None:
    job.log_metrics(
        {"loss": 0.5, "best": float("inf"), "worst": -float("inf"), "x": float("nan")}, step=3
    )
    job.progress(3, 10, "epoch 3")
    metrics = {"loss": 0.5, "best": "Infinity", "worst": "-Infinity", "x": "NaN"}
    progress = {"done": 3.0, "total": 10.0, "message": "epoch 3"}
    assert spooled(job) == [{"metrics": metrics, "step": 3}, {"progress": progress}]


def test_a_checkpoint_appears_when_its_block_ends_well(job: JobContext) -> None:
    before = []
    with job.checkpoint(5, {"loss": 0.1}) as directory:
        (directory / "model").write_text("five")
        before.append(job.latest_checkpoint)
    assert before == [None]
    final = job.checkpoints_dir / "step-5"
    assert (final / "model").read_text() == "five"
    assert job.latest_checkpoint == final
    told = {"step": 5, "dir": "step-5", "metrics": {"loss": 0.1}}
    assert spooled(job) == [{"checkpoint": told}]


def test_a_checkpoint_whose_block_raises_never_was(job: JobContext) -> None:
    def save_half() -> None:
        with job.checkpoint(5) as directory:
            (directory / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_half()
    assert os.listdir(job.checkpoints_dir) == []
    assert job.spool is not None
    assert not job.spool.exists()


def test_a_step_saved_again_replaces_the_first(job: JobContext) -> None:
    for text in ("old", "new"):
        with job.checkpoint(5) as directory:
            (directory / text).write_text(text)
    assert os.listdir(job.checkpoints_dir) == ["step-5"]
    assert os.listdir(job.checkpoints_dir / "step-5") == ["new"]


def test_the_newest_checkpoint_counts_and_steps_are_numbers(job: JobContext) -> None:
    for step in (9, 10):
        with job.checkpoint(step):
            pass
    assert job.latest_checkpoint == job.checkpoints_dir / "step-10"


def test_a_retried_task_sees_the_restored_checkpoint(
    attempt: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "restored").mkdir()
    job = JobContext.from_environment({**attempt, "HATOBA_RESTORE": str(tmp_path / "restored")})
    assert job.latest_checkpoint == tmp_path / "restored"
    with job.checkpoint(7):
        pass
    assert job.latest_checkpoint == job.checkpoints_dir / "step-7"


def test_one_name_for_every_pod_stands_for_the_step_or_for_none(
    attempt: dict[str, str], tmp_path: Path
) -> None:
    latest = tmp_path / "latest"
    told = {**attempt, "HATOBA_RESTORE": str(latest)}
    assert JobContext.from_environment(told).latest_checkpoint is None
    (tmp_path / "step-7").mkdir()
    latest.symlink_to("step-7")
    assert JobContext.from_environment(told).latest_checkpoint == tmp_path / "step-7"


def test_should_stop_follows_the_workers_word(job: JobContext) -> None:
    assert not job.should_stop
    assert job.directory is not None
    (job.directory / "stop").touch()
    assert job.should_stop


def test_who_is_not_asked_to_save_goes_on(job: JobContext) -> None:
    job.give_way()
    assert not job.checkpoint_requested
    assert job.seconds_to_save == math.inf


def test_who_is_asked_to_save_may_give_way(job: JobContext) -> None:
    assert job.directory is not None
    (job.directory / "save").write_text(f"{time.time() + 100:.3f}")
    assert job.checkpoint_requested
    # What is written has but milliseconds.
    assert 0 < job.seconds_to_save <= 100.001
    with pytest.raises(SystemExit) as ending:
        job.give_way()
    assert ending.value.code == GAVE_WAY
    (job.directory / "save").write_text("soon")
    assert job.seconds_to_save == math.inf


def test_outside_nobody_asks_to_save() -> None:
    job = JobContext.from_environment({})
    assert not job.checkpoint_requested
    assert job.seconds_to_save == math.inf
    job.give_way()


def test_nothing_raises_when_the_directory_is_gone(
    attempt: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    gone = {key: str(tmp_path / "file" / "x") for key in attempt if key.startswith("HATOBA_")}
    job = JobContext.from_environment({**attempt, **gone})
    for step in range(3):
        job.log_metrics({"a": 1}, step=step)
        job.progress(step)
        with job.checkpoint(step) as directory:
            (directory / "model").write_text("x")
    assert job.params == {}
    assert job.inputs == {}
    assert job.outputs.name == "x"
    assert job.latest_checkpoint is None
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(set(warnings)) <= 4
    assert any("cannot be recorded" in line for line in warnings)


def test_a_full_disk_warns_once_and_the_job_goes_on(
    attempt: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobContext.from_environment({**attempt, "HATOBA_SPOOL": "/dev/full"})
    for step in range(5):
        job.log_metrics({"a": 1}, step=step)
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_report_over_the_limit_is_dropped_whole(
    job: JobContext, capsys: pytest.CaptureFixture[str]
) -> None:
    job.log_metrics({f"k{n}": 1.0 for n in range(MAX_LINE_BYTES // 8)})
    job.log_metrics({"small": 1.0})
    assert spooled(job) == [{"metrics": {"small": 1.0}, "step": 0}]
    assert "dropped" in capsys.readouterr().err


def test_lines_of_many_processes_never_mix(attempt: dict[str, str]) -> None:
    script = (
        "import hatoba\nfor n in range(200): hatoba.current_job().log_metrics({'x' * 100: n}, n)"
    )
    environment = {**os.environ, **attempt, "PYTHONPATH": str(CLIENT)}
    writers = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(4)]
    assert [writer.wait(30) for writer in writers] == [0] * 4
    lines = Path(attempt["HATOBA_SPOOL"]).read_text().splitlines()
    assert sorted(json.loads(line)["step"] for line in lines) == sorted([*range(200)] * 4)


def test_outside_the_same_script_runs_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    job = JobContext.from_environment({})
    assert not job.inside
    assert job.params.get("lr", 0.1) == 0.1
    assert (job.index, job.count, job.should_stop, job.inputs) == (0, 1, False, {})
    job.log_metrics({"loss": 0.5}, step=2)
    job.progress(1, 2)
    with job.checkpoint(2) as directory:
        (directory / "model").write_text("two")
    assert JobContext.from_environment({}).latest_checkpoint == Path(".hatoba/checkpoints/step-2")
    assert job.outputs == Path("outputs")
    assert job.outputs.is_dir()
    assert "step 2: loss=0.5" in capsys.readouterr().err


def test_importing_it_needs_the_standard_library_only() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(CLIENT)!r}); import hatoba; hatoba.current_job();"
        "print(hatoba.__version__, sorted(n for n in sys.modules if n.startswith('hatoba')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{hatoba.__version__} ['hatoba', 'hatoba.job_context']"


def test_everything_promised_can_be_imported_lazily() -> None:
    assert {getattr(hatoba, name).__name__ for name in hatoba.__all__} == set(hatoba.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        hatoba.Clint  # noqa: B018
