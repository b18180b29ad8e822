"""The commands that people use most, against fakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from click.testing import Result

from hatoba.cli.exits import Exit
from hatoba.v1 import common_pb2, job_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]


def test_run_follows_to_the_end_with_data_alone_on_stdout(fake: FakeServer, cli: Cli) -> None:
    fake.run_through(out=b"one\ntwo\n", err=b"warned\n")
    result = cli("run", "--no-code", "--", "python", "train.py")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n"
    assert "warned" in result.stderr
    assert "train-1  SUCCEEDED" in result.stderr


def test_run_sends_every_option_in_its_field(fake: FakeServer, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    flags = [
        "--name",
        "digits",
        "--queue",
        "gpu",
        "--backend",
        "hosts",
        "--priority",
        "5",
        "-p",
        "lr=0.01",
        "-p",
        "epochs=3",
        "-p",
        "fast=true",
        "-p",
        "note=hi",
        "--env",
        "A=b=c",
        "--secret",
        "TOKEN=API_TOKEN",
        "--python",
        "3.11",
        "--cpus",
        "1.5",
        "--memory",
        "4Gi",
        "--gpus",
        "2",
        "--timeout",
        "1h30m",
        "--stop-grace",
        "5s",
        "--retries",
        "2",
        "--array",
        "0-9",
        "--max-parallel",
        "4",
        "--fail-fast",
        "--after",
        "a-1",
        "--after",
        "b-2",
        "--label",
        "team=vision",
        "--hold",
        "--no-code",
        "--detach",
    ]
    result = cli(
        "run", *flags, "--requirements", str(tmp_path / "requirements.txt"), "--", "./go", "-x"
    )
    assert result.exit_code == 0, result.output
    request = fake.requests("SubmitJobRequest")[0]
    spec = request.spec
    assert (spec.name, spec.queue, spec.backend, spec.priority) == ("digits", "gpu", "hosts", 5)
    assert list(spec.command) == ["./go", "-x"]
    assert spec.params["lr"].number_value == 0.01
    assert spec.params["epochs"].number_value == 3
    assert spec.params["fast"].bool_value is True
    assert spec.params["note"].string_value == "hi"
    assert dict(spec.env) == {"A": "b=c"}
    assert (spec.secrets[0].name, spec.secrets[0].env) == ("TOKEN", "API_TOKEN")
    assert (spec.environment.python, spec.environment.requirements) == ("3.11", "numpy\n")
    assert spec.environment.caller_interpreter == ""
    assert (spec.resources.cpus, spec.resources.memory_bytes, spec.resources.gpus) == (
        1.5,
        2**32,
        2,
    )
    assert (spec.timeout.seconds, spec.stop_grace.seconds, spec.retries.user) == (5400, 5, 2)
    assert (spec.array.size, spec.array.max_parallel, spec.array.fail_fast) == (10, 4, True)
    assert list(spec.after_ok) == ["a-1", "b-2"]
    assert (dict(spec.labels), spec.hold) == ({"team": "vision"}, True)
    assert len(request.request_id) == 32


def test_run_records_the_callers_interpreter_when_no_environment_is_asked_for(
    fake: FakeServer, cli: Cli
) -> None:
    assert cli("run", "--no-code", "-d", "--", "python", "-m", "pkg.train").exit_code == 0
    spec = fake.requests("SubmitJobRequest")[0].spec
    assert spec.environment.caller_interpreter == sys.executable
    assert spec.name == "pkg-train"


def test_detach_prints_the_name_alone(fake: FakeServer, cli: Cli) -> None:
    result = cli("run", "--no-code", "--detach", "--", "true")
    assert (result.exit_code, result.stdout) == (0, "true-1\n")


@pytest.mark.parametrize(
    ("state", "code"),
    [("FAILED", 20), ("CANCELLED", 21), ("TIMED_OUT", 22), ("UPSTREAM_FAILED", 23)],
)
def test_run_tells_how_the_job_ended_by_its_exit_code(
    fake: FakeServer, cli: Cli, state: str, code: int
) -> None:
    fake.run_through(state=state)
    assert cli("run", "--no-code", "--", "true").exit_code == code


def test_a_failed_run_says_cause_figure_and_the_next_command(fake: FakeServer, cli: Cli) -> None:
    job = fake.run_through(state="FAILED")
    job.cause.code = common_pb2.CAUSE_CODE_EXIT_CODE
    job.cause.message = "The command ended with exit code 7."
    job.cause.exit_code = 7
    result = cli("run", "--no-code", "--", "true")
    assert "The command ended with exit code 7." in result.stderr
    assert "exit code 7" in result.stderr
    assert "hatoba logs train-1 --tail 50" in result.stderr


def test_run_shows_the_log_of_every_attempt(fake: FakeServer, cli: Cli) -> None:
    fake.add_job()
    fake.logs = {(1, "stdout"): b"first\n", (2, "stdout"): b"second\n"}
    fake.add_event("STARTING", "RUNNING", attempt=1)
    fake.add_event("RUNNING", "QUEUED", attempt=1, reason="retry")
    fake.add_event("STARTING", "RUNNING", attempt=2)
    fake.add_event("RUNNING", "SUCCEEDED", attempt=2)
    assert cli("run", "--no-code", "--", "true").stdout == "first\nsecond\n"


def test_run_goes_on_through_broken_streams(fake: FakeServer, cli: Cli) -> None:
    text = b"".join(b"%05d\n" % n for n in range(20))
    fake.run_through(out=text)
    fake.breaks = [2, 3, 1, 4]
    result = cli("run", "--no-code", "--", "true")
    assert (result.exit_code, result.stdout) == (0, text.decode()), result.stderr


def test_ctrl_c_detaches_and_says_how_to_return(fake: FakeServer, tmp_path: Path) -> None:
    fake.hold = True
    fake.run_through(out=b"begun\n")
    (tmp_path / "token").write_text("t")
    command = [sys.executable, "-m", "hatoba", "--address", fake.address, "--token-file"]
    command += [str(tmp_path / "token"), "run", "--no-code", "--", "true"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "hatoba logs train-1 -f" in err
    assert "hatoba jobs cancel train-1" in err
    assert fake.requests("CancelJobsRequest") == []
    assert "Traceback" not in err


def test_a_followed_job_that_waits_says_why(
    fake: FakeServer, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatoba.cli.following.FIRST_LOOK", 0.001)
    fake.hold_watch = True
    fake.run_through().waiting_reason = "for 4 GPUs; 1 is free"
    result = cli("run", "--no-code", "--", "true")
    assert result.stderr.count("train-1 waits: for 4 GPUs; 1 is free") == 1


def test_a_retry_is_told_with_its_cause(fake: FakeServer, cli: Cli) -> None:
    fake.add_job()
    cause = common_pb2.Cause(message="The host is gone.")
    fake.add_event("STARTING", "RUNNING", attempt=1)
    fake.add_event("RUNNING", "QUEUED", attempt=1, reason="retry", cause=cause)
    fake.add_event("STARTING", "RUNNING", attempt=2)
    fake.add_event("RUNNING", "SUCCEEDED", attempt=2)
    told = cli("run", "--no-code", "--", "true").stderr
    assert "train-1  QUEUED for another attempt: The host is gone." in told
    assert "train-1  RUNNING (attempt 2)" in told


def test_logs_without_a_name_shows_my_latest(fake: FakeServer, cli: Cli) -> None:
    fake.run_through(out=b"hello\n", err=b"oops\n")
    cli("run", "--no-code", "-d", "--", "true")
    result = cli("logs")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "oops\n")
    assert fake.requests("ListJobsRequest")[-1].filter == "created_by = ann"


def test_logs_passes_its_options_on(fake: FakeServer, cli: Cli) -> None:
    fake.run_through()
    cli("logs", "train-1", "--stream", "stderr", "--index", "3", "--attempt", "2", "--tail", "7")
    request = fake.requests("TailLogsRequest")[0]
    assert (request.stream, request.index, request.attempt, request.tail_lines) == (
        "stderr",
        3,
        2,
        7,
    )


def test_logs_of_an_unknown_job_is_not_found(fake: FakeServer, cli: Cli) -> None:
    result = cli("logs", "nothing-1")
    assert result.exit_code == 3
    assert "nothing-1" in result.stderr


def test_list_is_a_table_or_proto_json(fake: FakeServer, cli: Cli) -> None:
    fake.add_job("train-1", "RUNNING")
    lines = cli("jobs", "list").stdout.splitlines()
    assert lines[0].split()[:3] == ["JOB", "STATE", "TASKS"]
    assert lines[1].split()[:3] == ["train-1", "RUNNING", "0/1"]
    jobs = json.loads(cli("jobs", "list", "-o", "json").stdout)["jobs"]
    assert (jobs[0]["state"], jobs[0]["created_by"]) == ("RUNNING", "ann")
    assert yaml.safe_load(cli("jobs", "list", "-o", "yaml").stdout)["jobs"] == jobs


def test_list_joins_its_filters(fake: FakeServer, cli: Cli) -> None:
    cli(
        "jobs",
        "list",
        "--state",
        "running",
        "--queue",
        "gpu",
        "--active",
        "--filter",
        "labels.a = b",
    )
    wanted = "labels.a = b AND state = RUNNING AND queue = gpu AND active = true"
    assert fake.requests("ListJobsRequest")[0].filter == wanted


def test_nothing_is_coloured_when_it_is_not_a_terminal(fake: FakeServer, cli: Cli) -> None:
    fake.run_through(state="FAILED")
    for arguments in (
        ["jobs", "list"],
        ["jobs", "get", "train-1"],
        ["run", "--no-code", "--", "true"],
    ):
        assert "\x1b" not in cli(*arguments).output


def test_a_waiting_job_says_what_it_needs_and_what_is_free(fake: FakeServer, cli: Cli) -> None:
    job = fake.add_job("big-1", "QUEUED", waiting_reason="2 GPUs; hosts has 1 of 4 free")
    job.spec.resources.gpus = 2
    job.spec.resources.memory_bytes = 2**34
    text = cli("jobs", "get", "big-1").stdout
    assert text.startswith("big-1  QUEUED for ")
    assert "2 GPUs; hosts has 1 of 4 free" in text
    assert "16 GiB, 2 GPUs" in text
    assert "hatoba hosts list" in text
    assert "hatoba jobs cancel big-1" in text


def test_a_failed_job_says_cause_figure_last_lines_and_next_command(
    fake: FakeServer, cli: Cli
) -> None:
    job = fake.add_job("train-1", "FAILED")
    job.spec.command.extend(["python", "train.py"])
    job.spec.resources.memory_bytes = 2**29
    job.cause.code = common_pb2.CAUSE_CODE_OUT_OF_MEMORY
    job.cause.message = "It used more memory than it asked for."
    job.cause.evidence["memory_peak_bytes"] = str(2**29)
    job.cause.last_log_lines.extend(["zero", "one", "two", "three"])
    text = cli("jobs", "get", "train-1").stdout
    assert "It used more memory than it asked for." in text
    assert "memory peak 512 MiB" in text
    assert "zero" not in text
    assert [word in text for word in ("one", "two", "three")] == [True] * 3
    assert "hatoba run --memory 1024Mi -- python train.py" in text


def test_get_shows_attempts(fake: FakeServer, cli: Cli) -> None:
    job = fake.add_job("train-1", "RUNNING")
    attempt = job_pb2.Attempt(number=1, state=common_pb2.ATTEMPT_STATE_LOST, host="hosts/here")
    fake.attempts[job.name] = [
        attempt,
        job_pb2.Attempt(number=2, state=common_pb2.ATTEMPT_STATE_RUNNING),
    ]
    text = cli("jobs", "get", "train-1").stdout
    assert "1 LOST  on here" in text
    assert "2 RUNNING" in text


def test_cancel_says_what_it_did(fake: FakeServer, cli: Cli) -> None:
    result = cli("jobs", "cancel", "train-1", "b-2", "--reason", "wrong data")
    request = fake.requests("CancelJobsRequest")[0]
    assert (list(request.jobs), request.reason) == (["train-1", "b-2"], "wrong data")
    assert result.stdout.splitlines()[1].split()[:2] == ["train-1", "CANCELLED"]


def test_cancel_wants_names_or_a_filter(cli: Cli) -> None:
    assert cli("jobs", "cancel").exit_code == 2
    assert cli("jobs", "cancel", "a-1", "--filter", "queue = gpu").exit_code == 2


def test_rerun_overrides_and_prints_the_new_name(fake: FakeServer, cli: Cli) -> None:
    fake.add_job("train-1", "FAILED")
    result = cli("jobs", "rerun", "train-1", "-p", "lr=0.1", "--env", "A=b", "--from-checkpoint")
    request = fake.requests("RerunJobRequest")[0]
    assert result.stdout == "train-2\n"
    assert (request.params["lr"].number_value, dict(request.env)) == (0.1, {"A": "b"})
    assert request.from_checkpoint


def test_hold_release_and_update_change_only_what_was_said(fake: FakeServer, cli: Cli) -> None:
    fake.add_job("a-1", "QUEUED")
    for arguments in (
        ["hold", "a-1"],
        ["release", "a-1"],
        ["update", "a-1", "--priority", "7", "--etag", "e"],
    ):
        assert cli("jobs", *arguments).exit_code == 0
    hold, release, update = fake.requests("UpdateJobRequest")
    assert (list(hold.update_mask.paths), hold.hold) == (["hold"], True)
    assert (list(release.update_mask.paths), release.hold) == (["hold"], False)
    assert (list(update.update_mask.paths), update.priority, update.etag) == (["priority"], 7, "e")
    assert cli("jobs", "update", "a-1").exit_code == 2


def test_one_that_cannot_be_held_keeps_no_other_from_it(fake: FakeServer, cli: Cli) -> None:
    fake.refuse("UpdateJobRequest", grpc.StatusCode.NOT_FOUND, "there is no job 'ghost-1'")
    fake.jobs["b-2"] = fake.add_job("b-2", "HELD")
    result = cli("jobs", "hold", "ghost-1", "b-2")
    assert result.exit_code == Exit.NOT_FOUND
    assert [one.name for one in fake.requests("UpdateJobRequest")] == ["ghost-1", "b-2"]
    assert "b-2" in result.stdout
    assert "ghost-1" in result.stderr


def test_an_update_says_where_the_job_stands_then(fake: FakeServer, cli: Cli) -> None:
    job = fake.jobs["a-1"] = fake.add_job("a-1", "QUEUED")
    job.spec.priority, job.spec.queue = 7, "night"
    text = cli("jobs", "update", "a-1", "--priority", "7").stdout
    assert "a-1  QUEUED in queue night, priority 7" in text


def test_watch_ends_with_the_job_and_writes_json_lines(fake: FakeServer, cli: Cli) -> None:
    fake.run_through()
    result = cli("jobs", "watch", "train-1", "-o", "json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["to"] for event in events] == ["LAUNCHING", "STARTING", "RUNNING", "SUCCEEDED"]


def test_events_shows_what_happened_and_returns(fake: FakeServer, cli: Cli) -> None:
    fake.run_through()
    lines = cli("events", "--limit", "2").stdout.splitlines()
    assert len(lines) == 2
    assert "train-1[0] attempt 1  RUNNING -> SUCCEEDED" in lines[1]


def series(key: str, *values: float, index: int = 0) -> job_pb2.MetricSeries:
    points = [job_pb2.MetricPoint(step=step, value=value) for step, value in enumerate(values)]
    return job_pb2.MetricSeries(key=key, index=index, points=points)


def test_metrics_are_a_table_with_their_course(fake: FakeServer, cli: Cli) -> None:
    fake.add_job()
    fake.series = [series("loss", 3.0, 2.0, float("nan"), 1.0)]
    head, row = cli("jobs", "metrics", "train-1").stdout.splitlines()
    assert head.split()[0] == "METRIC"
    assert row.split()[:6] == ["loss", "1", "1", "3", "4", "3"]
    assert "█▅ ▁" in row


def test_metrics_plot_writes_a_picture(fake: FakeServer, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fake.add_job()
    fake.series = [series("loss", 3.0, 2.0), series("accuracy", 0.5, 0.9)]
    picture = tmp_path / "m.png"
    assert cli("jobs", "metrics", "train-1", "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_metrics_plot_without_matplotlib_names_the_extra(
    fake: FakeServer, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fake.add_job()
    fake.series = [series("loss", 1.0)]
    result = cli("jobs", "metrics", "train-1", "--plot", "m.png")
    assert result.exit_code == 2
    assert "hatoba[demo]" in result.stderr


def test_compare_marks_what_differs(fake: FakeServer, cli: Cli) -> None:
    for name, rate in (("a-1", 0.1), ("b-2", 0.2)):
        job = fake.add_job(name)
        job.spec.params["lr"].number_value = rate
        job.spec.params["epochs"].number_value = 3
    fake.series = [series("loss", 3.0, 1.0, 2.0), series("accuracy", 0.5, 0.9, 0.8)]
    rows = {
        line.split("  ")[0]: line.split()
        for line in cli("jobs", "compare", "a-1", "b-2").stdout.splitlines()
    }
    assert rows["param lr"][-3:] == ["0.1", "0.2", "*"]
    assert rows["param epochs"][-2:] == ["3", "3"]
    assert rows["best loss"][-2:] == ["1", "1"]
    assert rows["best accuracy"][-2:] == ["0.9", "0.9"]
    assert rows["last loss"][-2:] == ["2", "2"]


def test_trace_draws_the_tree(fake: FakeServer, cli: Cli) -> None:
    def span(number: int, parent: int, name: str, begin: int, end: int) -> job_pb2.Span:
        ids = {"span_id": f"{number:016x}", "parent_span_id": f"{parent:016x}" if parent else ""}
        times = {"start_unix_nanos": begin * 10**9, "end_unix_nanos": end * 10**9}
        return job_pb2.Span(trace_id="ab" * 16, name=name, process=f"p/{number}", **ids, **times)  # type: ignore[arg-type]

    fake.spans = [
        span(2, 1, "server", 1, 3),
        span(1, 0, "client", 0, 10),
        span(3, 99, "stray", 2, 4),
    ]
    lines = cli("jobs", "trace", "train-1").stdout.splitlines()
    assert lines[0] == "trace " + "ab" * 16 + "  10s, 3 spans, 3 processes"
    assert [line.split()[3] for line in lines[2:]] == ["client", "server", "stray"]
    assert lines[3].index("server") == lines[2].index("client") + 2


def test_errors_are_sentences_with_a_remedy(fake: FakeServer, cli: Cli) -> None:
    fake.refuse("GetJobRequest", grpc.StatusCode.UNAUTHENTICATED, "the token has expired")
    result = cli("jobs", "get", "train-1")
    assert result.exit_code == 4
    assert "the token has expired" in result.stderr
    assert "hatoba login" in result.stderr
    assert "Traceback" not in result.output


def test_a_closed_pipe_is_no_error(fake: FakeServer, tmp_path: Path) -> None:
    fake.run_through(out=b"x" * 2_000_000)
    (tmp_path / "token").write_text("t")
    command = f"{sys.executable} -m hatoba --address {fake.address} logs train-1 | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "x" * 10
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
