"""Plans, explanations, and everything that is said of when, where and how often a job runs."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result

from hatoba.errors import InvalidSpec
from hatoba.jobfile import JobFileError, read_overrides
from hatoba.options import SubmitOptions, build_parcel
from hatoba.plain import to_plain
from hatoba.terms import parse_requirement, parse_rule
from hatoba.v1 import common_pb2, job_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]


# -- options ---------------------------------------------------------------------------------------


def test_every_term_has_an_option(fake: FakeServer, cli: Cli) -> None:
    said = shlex.split(
        "run -d --no-code --after-any a-1 --after-end b-2 --replicas 4 --gang-policy restart "
        "--gang-timeout 5m --require zone=a,b --require !old --prefer ssd --strategy pack "
        "--apart-from team=vision --near role=cache --apart --start-after 2026-12-01T08:00:00Z "
        "--deadline 2026-12-02T00:00:00+02:00 --max-queue-time 1h --stop-after 10m "
        "--lost-after 11m --max-preemptions 0 --preempt-grace 2m --spot prefer"
    )
    rules = ("--retry-rule", "on=OUT_OF_MEMORY limit=3 memory=2x memory-max=64Gi other-host")
    result = cli(*said, *rules, "--retry-rule", "on=75,preemption fail", "--", "true")
    assert result.exit_code == 0, result.stderr
    spec = to_plain(fake.requests("SubmitJobRequest")[0].spec)
    assert spec["replicas"] == 4
    assert spec["gang"] == {"policy": "RESTART", "start_timeout": "300s"}
    assert spec["placement"] == {
        "require": [
            {"key": "zone", "operator": "IN", "values": ["a", "b"]},
            {"key": "old", "operator": "NOT_EXISTS"},
        ],
        "prefer": [{"key": "ssd", "operator": "EXISTS"}],
        "strategy": "PACK",
        "apart_from": ["team=vision"],
        "near": ["role=cache"],
        "apart": True,
    }
    assert (spec["start_after"], spec["deadline"]) == (
        "2026-12-01T08:00:00Z",
        "2026-12-01T22:00:00Z",
    )
    assert spec["disconnect"] == {"stop_after": "600s", "lost_after": "660s"}
    assert spec["preemption"] == {"max": 0, "grace": "120s"}
    assert (spec["spot"], spec["max_queue_time"]) == ("PREFER", "3600s")
    assert (spec["after_any"], spec["after_end"]) == (["a-1"], ["b-2"])
    assert spec["retries"]["rules"] == [
        {
            "causes": ["OUT_OF_MEMORY"],
            "limit": 3,
            "mutate": {
                "memory_factor": 2.0,
                "memory_max_bytes": str(64 << 30),
                "other_host": True,
            },
        },
        {"exit_codes": [75], "origins": ["PREEMPTION"], "action": "FAIL"},
    ]


def test_a_plain_job_says_none_of_it(fake: FakeServer, cli: Cli) -> None:
    assert cli("run", "-d", "--no-code", "--", "true").exit_code == 0
    spec = fake.requests("SubmitJobRequest")[0].spec
    for name in ("gang", "placement", "start_after", "deadline", "disconnect", "preemption"):
        assert not spec.HasField(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "says nothing"),
        ("on=OOM", "'OOM' is no cause, no origin (USER, INFRASTRUCTURE"),
        ("on=USER limit", "'limit' is no part of a retry rule"),
        ("on=USER limit=many", "'limit=many'"),
        ("memory=lots", "'memory=lots'"),
        ("memory-max=lots", "not an amount of memory"),
        ("fail=yes", "'fail=yes' is no part"),
    ],
)
def test_a_bad_rule_is_told_with_an_example(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_rule(text)
    assert words in str(caught.value)
    assert "on=OUT_OF_MEMORY" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "!", "zone=", "=a"])
def test_a_requirement_asks_something(text: str) -> None:
    with pytest.raises(InvalidSpec, match="asks nothing"):
        parse_requirement(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spot": "some"}, "spot: 'some' is none of allow, only"),
        ({"gang_policy": "retry"}, "gang_policy: 'retry'"),
        ({"start_after": "tomorrow"}, "start_after: 'tomorrow' is not a time"),
        ({"lost_after": "10"}, "lost_after: '10' is not a duration"),
    ],
)
def test_a_bad_option_is_named(options: SubmitOptions, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        build_parcel(["true"], options)


def test_times_may_be_python_s_own() -> None:
    when = dt.datetime(2026, 12, 1, 8, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    spec = build_parcel(["true"], {"deadline": when, "max_queue_time": 90.5}).spec
    assert spec.deadline.ToJsonString() == "2026-12-01T06:00:00Z"
    assert spec.max_queue_time.ToJsonString() == "90.500s"


# -- plan and explain ------------------------------------------------------------------------------

WAITS = job_pb2.Explanation(
    job="projects/default/jobs/train-7",
    state=common_pb2.JOB_STATE_QUEUED,
    reason=job_pb2.WAIT_REASON_NO_ROOM,
    message="It needs 2 GPUs; 1 is free.",
    remedy="Wait for train-3 to end.",
    also=["Queue gpu is above its share."],
    queue="gpu",
    position=3,
    queue_length=12,
    estimate_basis="train-3 has no time limit",
    candidates=[job_pb2.Candidate(backend="hosts", pool="h1", message="1 of 2 GPUs free")],
)
STARTS = job_pb2.Explanation(
    state=common_pb2.JOB_STATE_QUEUED,
    message="There is room on h2.",
    queue="default",
    places=[job_pb2.Candidate(backend="hosts", pool="h2", fits=True, message="GPU 0, 1")],
    preempts=["projects/default/jobs/low-3"],
    warnings=["Retry rule 2 never speaks."],
)


def test_explain_says_why_where_and_when(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ExplainJobRequest"] = WAITS
    for name in ("jobs/train-7", "train-7"):
        text = cli("explain", name).stdout
        assert "train-7  QUEUED: no room" in text
        assert "It needs 2 GPUs; 1 is free." in text
        assert "queue gpu, place 3 of 12" in text
        assert "unknown (train-3 has no time limit)" in text
        assert "hosts/h1  no  1 of 2 GPUs free" in text
    assert [request.name for request in fake.requests("ExplainJobRequest")] == ["train-7"] * 2


def test_what_is_held_is_not_said_twice(fake: FakeServer, cli: Cli) -> None:
    held = job_pb2.Explanation(
        job="train-7",
        state=common_pb2.JOB_STATE_HELD,
        reason=job_pb2.WAIT_REASON_HELD,
        estimate_basis="unknown: it does not depend on what runs",
    )
    fake.replies["ExplainJobRequest"] = held
    lines = cli("explain", "train-7").stdout.splitlines()
    assert lines[0] == "train-7  HELD"
    assert lines[-1].split(maxsplit=1)[1] == "unknown (it does not depend on what runs)"


def test_plan_says_where_it_would_start(fake: FakeServer, cli: Cli) -> None:
    fake.replies["PlanJobRequest"] = STARTS
    text = cli("plan", "--gpus", "2", "--", "python", "train.py").stdout
    assert text.startswith("would start now on hosts/h2")
    for words in ("GPU 0, 1", "low-3", "Retry rule 2 never speaks."):
        assert words in text
    assert fake.requests("PlanJobRequest")[0].spec.resources.gpus == 2
    assert not fake.requests("SubmitJobRequest")


def test_plan_of_a_file_and_for_programs(fake: FakeServer, cli: Cli, tmp_path: Path) -> None:
    fake.replies["PlanJobRequest"] = WAITS
    file = tmp_path / "job.yaml"
    file.write_text("name: a\ncommand: [x, '${params.lr}']\nreplicas: 2\n")
    result = cli("plan", "-f", str(file), "-p", "lr=1", "-o", "json")
    assert json.loads(result.stdout)["reason"] == "NO_ROOM"
    asked = fake.requests("PlanJobRequest")[0].spec
    assert (asked.replicas, asked.params["lr"].number_value) == (2, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either a command"),
        (("-f", "FILE", "--", "true"), "either a command"),
        (("-f", "FILE", "--gpus", "2"), "write --gpus into"),
        (("-f", "TWO"), "has 2"),
    ],
)
def test_plan_is_of_one_job(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    for name, text in (("FILE", "command: [a]\n"), ("TWO", "command: [a]\n---\ncommand: [b]\n")):
        (tmp_path / name).write_text(text)
    said = [str(tmp_path / word) if word in ("FILE", "TWO") else word for word in arguments]
    result = cli("plan", *said)
    assert result.exit_code == 2
    assert words in result.stderr


# -- cancel, rerun, history ------------------------------------------------------------------------


def test_a_queue_is_cancelled_part_by_part(fake: FakeServer, cli: Cli) -> None:
    replies = [
        job_pb2.CancelJobsResponse(results=[job_pb2.CancelResult(job=name)], more=more)
        for name, more in (("a-1", True), ("b-2", False))
    ]

    class Parts(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            return replies.pop(0) if name == "CancelJobsRequest" else default

    fake.replies = Parts()
    result = cli("jobs", "cancel", "--queue", "night", "--filter", "name = a", "--reason", "old")
    assert result.exit_code == 0
    assert "a-1" in result.stdout
    assert "b-2" in result.stdout
    first, second = fake.requests("CancelJobsRequest")
    assert (first.queue, first.filter, first.reason) == ("night", "name = a", "old")
    assert second.queue == "night"
    assert first.request_id != second.request_id


def test_a_cancel_is_one_document_for_programs(fake: FakeServer, cli: Cli) -> None:
    replies = [
        job_pb2.CancelJobsResponse(results=[job_pb2.CancelResult(job=name)], more=more)
        for name, more in (("a-1", True), ("b-2", False))
    ]

    class Parts(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            return replies.pop(0) if name == "CancelJobsRequest" else default

    fake.replies = Parts()
    result = cli("jobs", "cancel", "--queue", "night", "-o", "json")
    assert [one["job"] for one in json.loads(result.stdout)["results"]] == ["a-1", "b-2"]


def test_some_tasks_of_an_array(fake: FakeServer, cli: Cli) -> None:
    assert cli("jobs", "cancel", "a-1", "--indices", "0-4,7").exit_code == 0
    (request,) = fake.requests("CancelJobsRequest")
    assert (list(request.jobs), request.indices) == (["a-1"], "0-4,7")


def test_rerun_of_what_failed_with_changes(fake: FakeServer, cli: Cli) -> None:
    job = fake.add_job("train-1", "FAILED")
    job.spec.command.extend(["python", "train.py"])
    job.spec.resources.cpus, job.spec.resources.memory_bytes = 2, 1 << 30
    job.spec.labels["team"] = "vision"
    changes = ("resources.memory=8Gi", "priority=0", "command=[python, other.py]", "labels={a: b}")
    said = [word for change in changes for word in ("--set", change)]
    assert cli("jobs", "rerun", "train-1", "--failed-only", *said).exit_code == 0
    (request,) = fake.requests("RerunJobRequest")
    assert request.failed_only
    fields = ["resources", "priority", "command", "labels"]
    assert list(request.override_mask.paths) == fields
    new = request.overrides
    assert (new.resources.cpus, new.resources.memory_bytes) == (2, 8 << 30)
    assert list(new.command) == ["python", "other.py"]
    assert dict(new.labels) == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queue", "write FIELD=VALUE"),
        ("queu=a", "did you mean 'queue'"),
        ("resources.memory=lots", "not an amount of memory"),
        (".a=1", "write FIELD=VALUE"),
        ("command=[a", "not YAML"),
    ],
)
def test_a_bad_change_is_told(text: str, words: str) -> None:
    with pytest.raises(JobFileError, match=words):
        read_overrides([text], job_pb2.JobSpec())


def test_an_empty_value_is_a_text() -> None:
    spec, fields = read_overrides(["backend="], job_pb2.JobSpec(backend="hosts"))
    assert (spec.backend, fields) == ("", ["backend"])


def test_a_job_shows_what_was_decided_about_it(fake: FakeServer, cli: Cli) -> None:
    fake.add_job("train-1", "RUNNING", version=3, inherited="0-4", rerun_of="train-0", generation=2)
    fake.jobs["train-1"].spec.replicas = 8
    fake.attempts["train-1"] = fake.attempts["projects/default/jobs/train-1"] = [
        job_pb2.Attempt(number=1, generation=1, state=common_pb2.ATTEMPT_STATE_FAILED),
        job_pb2.Attempt(number=2, generation=2, state=common_pb2.ATTEMPT_STATE_RUNNING),
    ]
    fake.add_event("QUEUED", "LAUNCHING", job_seq=1)
    note = "Retry 1 of 3 for infrastructure in 4.2 s; memory 4 GiB -> 8 GiB by rule 1."
    fake.add_event("RUNNING", "QUEUED", attempt=1, job_seq=2, note=note)
    fake.add_event("QUEUED", "LAUNCHING", attempt=2, job_seq=3)
    text = cli("jobs", "get", "train-1").stdout
    assert f"attempt 1: {note}" in " ".join(text.split())
    assert "8 members, generation 2" in text
    assert "1 FAILED of generation 1" in text
    assert "tasks 0-4 of train-0" in text


def test_devices_are_named_or_selected_and_have_their_own_interpreter(
    fake: FakeServer, cli: Cli
) -> None:
    named = ("--device", "cam-2", "--device", "cam-1")
    assert cli("run", "-d", "--no-code", *named, "--", "true").exit_code == 0
    selected = ("--device-selector", "site=tokyo", "--device-selector", "!old")
    assert cli("run", "-d", "--no-code", *selected, "--", "true").exit_code == 0
    first, second = (to_plain(one.spec) for one in fake.requests("SubmitJobRequest"))
    assert first["devices"] == {"names": ["cam-2", "cam-1"]}
    assert second["devices"] == {
        "selector": [
            {"key": "site", "operator": "IN", "values": ["tokyo"]},
            {"key": "old", "operator": "NOT_EXISTS"},
        ]
    }
    assert first["environment"] == {}
