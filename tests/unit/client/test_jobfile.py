"""Job files: what is read, and how well what is wrong is told."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from hatoba._status_details import FieldViolation, StatusDetails
from hatoba.errors import InvalidRequest, InvalidSpec
from hatoba.jobfile import JobFileError, read_job_file, read_jobs
from hatoba.plain import to_plain

GOOD = "name: train\ncommand: [python, train.py]\n"

# Text, line, column and a part of the message.
BAD = [
    ("", 1, 1, "no job"),
    ("---\n---\n", 1, 1, "no job"),
    ("# nothing\n", 1, 1, "no job"),
    ("hello\n", 1, 1, "a job is a mapping"),
    ("- name: a\n", 1, 1, "a job is a mapping"),
    ("42\n", 1, 1, "a job is a mapping"),
    ("name: a\n", 1, 1, "the program to run"),
    ("name: a\ncommand: [a\n", 3, 1, "not YAML"),
    ("name: 'a\n", 2, 1, "not YAML"),
    ("name: a\n\tcommand: [b]\n", 2, 1, "tab"),
    ("resources:\n\tcpus: 1\n", 2, 1, "tab"),
    ("name: a: b\n", 1, 8, "not YAML"),
    ("name: *nobody\n", 1, 7, "not YAML"),
    ("name: @a\n", 1, 7, "not YAML"),
    (GOOD + "nmae: x\n", 3, 1, "did you mean 'name'"),
    (GOOD + "comand: x\n", 3, 1, "did you mean 'command'"),
    (GOOD + "time_out: 3s\n", 3, 1, "did you mean 'timeout'"),
    (GOOD + "zzzz: x\n", 3, 1, "there are:"),
    (GOOD + "resources:\n  cpu: 1\n", 4, 3, "did you mean 'cpus'"),
    (GOOD + "resources:\n  gpu: 1\n", 4, 3, "did you mean 'gpus'"),
    (GOOD + "retries:\n  usr: 1\n", 4, 3, "did you mean 'user'"),
    (GOOD + "name: again\n", 3, 1, "twice, first on line 1"),
    (GOOD + "env: {A: '1', A: '2'}\n", 3, 15, "twice"),
    (GOOD + "resources: {memory: 1Gi, memory_bytes: 5}\n", 3, 26, "the same as 'memory'"),
    (GOOD + "<<: {queue: a}\n", 3, 1, "merge keys"),
    (GOOD + "? [a]\n: b\n", 3, 3, "a key is a name"),
    ("name: a\ncommand: python train.py\n", 2, 10, "write [python, train.py]"),
    ("name: a\ncommand: {a: b}\n", 2, 10, "is a list"),
    ("name: a\ncommand: [[a]]\n", 2, 11, "is one value, not a list"),
    ("name: a\ncommand: [a, ~]\n", 2, 14, "has no value"),
    ("name:\ncommand: [a]\n", 1, 6, "has no value"),
    (GOOD + "queue: null\n", 3, 8, "has no value"),
    (GOOD + "queue: [a]\n", 3, 8, "is one value"),
    (GOOD + "priority: high\n", 3, 11, "not a whole number"),
    (GOOD + "priority: 1.5\n", 3, 11, "not a whole number"),
    (GOOD + "priority: 99999999999\n", 3, 11, "is not between"),
    (GOOD + "hold: maybe\n", 3, 7, "neither true nor false"),
    (GOOD + "hold: yes\n", 3, 7, "neither true nor false"),
    (GOOD + "resources: {cpus: many}\n", 3, 19, "finite number"),
    (GOOD + "resources: {cpus: .nan}\n", 3, 19, "finite number"),
    (GOOD + "resources: {cpus: .inf}\n", 3, 19, "finite number"),
    (GOOD + "resources: {cpus: 1e999}\n", 3, 19, "finite number"),
    (GOOD + "resources: {memory: 12 GBs}\n", 3, 21, "not an amount of memory"),
    (GOOD + "resources: {memory: -1Gi}\n", 3, 21, "not an amount of memory"),
    (GOOD + "resources: {gpus: 0.5}\n", 3, 19, "whole number"),
    (GOOD + "resources: big\n", 3, 12, "is a mapping"),
    (GOOD + "timeout: 600\n", 3, 10, "not a duration"),
    (GOOD + "timeout: soon\n", 3, 10, "not a duration"),
    (GOOD + "timeout: [1]\n", 3, 10, "is one value"),
    (GOOD + "env: [A]\n", 3, 6, "is a mapping"),
    (GOOD + "env: {A: [1]}\n", 3, 10, "is one value"),
    (GOOD + "env: {A: }\n", 3, 10, "has no value"),
    (GOOD + "params: {lr: [1]}\n", 3, 14, "a number, a text or a boolean"),
    (GOOD + "params: {lr: ~}\n", 3, 14, "a number, a text or a boolean"),
    (GOOD + "params: {on: yes}\n", 3, 14, "two things"),
    (GOOD + "secrets: TOKEN\n", 3, 10, "is a list"),
    (GOOD + "secrets: [TOKEN]\n", 3, 11, "is a mapping"),
    (GOOD + "secrets: [{nam: a}]\n", 3, 12, "did you mean 'name'"),
    (GOOD + "inputs: [{path: data}]\n", 1, 1, "has no name"),
    (GOOD + "inputs: [{name: d, path: a, manifest: {digest: b}}]\n", 3, 29, "the same as 'path'"),
    (GOOD + "environment: {requirements_file: none.txt}\n", 3, 34, "cannot be read"),
    (GOOD + "environment: {pyton: '3'}\n", 3, 15, "did you mean 'python'"),
    (GOOD + "backend_options: [1]\n", 3, 18, "is a mapping"),
    (GOOD + "replicas: two\n", 3, 11, "not a whole number"),
    (GOOD + "gang: {policy: RETRY}\n", 3, 16, "is none of FAIL, RESTART"),
    (GOOD + "spot: SOMETIMES\n", 3, 7, "is none of ALLOW"),
    (GOOD + "start_after: tomorrow\n", 3, 14, "not a time"),
    (GOOD + "deadline: 2026-12-01T08:00:00\n", 3, 11, "names no time zone"),
    (GOOD + "deadline: 9999999d\n", 3, 11, "too far away"),
    (GOOD + "retries: {rules: [{causes: [OOM]}]}\n", 3, 29, "is none of EXIT_CODE"),
    (GOOD + "retries: {rules: [{exit_codes: [many]}]}\n", 3, 33, "not a whole number"),
    (GOOD + "retries: {rules: [{mutate: {memory_max: lots}}]}\n", 3, 41, "an amount of memory"),
    (GOOD + "retries: {rules: [{mutate: {memory_fator: 2}}]}\n", 3, 29, "did you mean 'memory_f"),
    (GOOD + "placement: {require: [{key: zone, values: a}]}\n", 3, 43, "is a list"),
    (GOOD + "resources: {named: {license: some}}\n", 3, 30, "not a whole number"),
    (GOOD + "array: 0-9\n", 3, 8, "is a mapping"),
    (GOOD + "queue: !!binary aGk=\n", 3, 8, "tagged"),
    (GOOD + "queue: !mine a\n", 3, 8, "!mine"),
    (GOOD + "labels: !mine {a: b}\n", 3, 9, "is a mapping"),
]


@pytest.mark.parametrize(("text", "line", "column", "part"), BAD)
def test_what_is_wrong_is_told_with_its_place(
    text: str, line: int, column: int, part: str, tmp_path: Path
) -> None:
    with pytest.raises(JobFileError) as raised:
        read_jobs(text, source="job.yaml", directory=tmp_path)
    assert part in raised.value.message
    assert f"job.yaml:{line}:{column}: " in raised.value.message


def test_every_problem_is_told_in_order(tmp_path: Path) -> None:
    with pytest.raises(JobFileError) as raised:
        read_jobs("nmae: a\ncommand: [x]\npriority: z\nhold: 1\n", source="f", directory=tmp_path)
    assert [problem.place.line for problem in raised.value.problems] == [1, 3, 4]


def test_the_fields_type_decides(tmp_path: Path) -> None:
    text = """
name: on
command: [python, -c, 010, 1.10, true]
environment: {python: 3.10}
env: {A: 007, B: no, C: ''}
params: {a: 1, b: 2.5, c: true, d: '3', e: 1:30}
resources: {cpus: 2, memory: 1.5Gi, gpus: 1}
timeout: 1h30m
retries: {user: 0, backoff: 500ms}
backend_options: {a: [1, {b: null}], c: 'yes'}
array: {size: 3, fail_fast: true}
labels: {team: 5}
hold: true
"""
    spec = read_jobs(text, source="f", directory=tmp_path)[0].parcel.spec
    assert (spec.name, list(spec.command)) == ("on", ["python", "-c", "010", "1.10", "true"])
    assert spec.environment.python == "3.10"
    assert dict(spec.env) == {"A": "007", "B": "no", "C": ""}
    assert (spec.params["a"].number_value, spec.params["b"].number_value) == (1, 2.5)
    assert (spec.params["c"].bool_value, spec.params["d"].string_value) == (True, "3")
    assert spec.params["e"].string_value == "1:30"
    assert (spec.resources.cpus, spec.resources.memory_bytes) == (2, 3 * 2**29)
    assert (spec.timeout.seconds, spec.retries.backoff.nanos) == (5400, 500_000_000)
    assert spec.retries.HasField("user")
    assert to_plain(spec)["backend_options"] == {"a": [1, {"b": None}], "c": "yes"}
    assert (spec.array.size, spec.array.fail_fast, spec.hold) == (3, True, True)
    assert dict(spec.labels) == {"team": "5"}


def test_several_documents_are_several_jobs(tmp_path: Path) -> None:
    found = read_jobs(
        GOOD + "---\n" + GOOD.replace("train\n", "eval\n") + "---\n", source="f", directory=tmp_path
    )
    assert [document.parcel.spec.name for document in found] == ["train", "eval"]


def test_json_is_read_with_its_tabs(tmp_path: Path) -> None:
    text = '{\n\t"name": "a\\u00e9",\n\t"command": ["x", "\\/y"],\n\t"params": '
    text += '{"n": 1e3, "t": "a\\tb"}\n}\n'
    spec = read_jobs(text, source="f", directory=tmp_path)[0].parcel.spec
    assert (spec.name, list(spec.command)) == ("aé", ["x", "/y"])
    assert (spec.params["n"].number_value, spec.params["t"].string_value) == (1000, "a\tb")


def test_directories_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "req.txt").write_text("numpy\n")
    path = tmp_path / "job.yaml"
    path.write_text(
        GOOD + "code: src\ninputs: [{path: data, name: faces}]\n"
        "environment: {requirements_file: req.txt}\n"
    )
    parcel = read_job_file(path)[0].parcel
    assert parcel.code == tmp_path / "src"
    assert parcel.inputs == {"faces": tmp_path / "data"}
    assert parcel.spec.environment.requirements == "numpy\n"


def test_a_name_is_made_where_none_is_given(tmp_path: Path) -> None:
    assert (
        read_jobs("command: [./Train_it.sh]", source="f", directory=tmp_path)[0].parcel.spec.name
        == "train-it"
    )


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "a: &a [*a]\ncommand: [x]"])
def test_deep_and_circular_files_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(JobFileError):
        read_jobs(text, source="f", directory=tmp_path)


def test_aliases_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = GOOD + "backend_options:\n" + "\n".join("  " + line for line in lines)
    with pytest.raises(JobFileError, match=r"unfolds|nested"):
        read_jobs(text, source="f", directory=tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_unreadable_files_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=r"job\.yaml"):
        read_job_file(path)


def test_a_servers_refusal_gets_line_and_column(tmp_path: Path) -> None:
    text = GOOD + "resources:\n  cpus: 99999\nenv:\n  A: b\n"
    document = read_jobs(text, source="job.yaml", directory=tmp_path)[0]
    found = [
        ("spec.resources.cpus", "at most 4096"),
        ('spec.env["A"]', "bad"),
        ("spec.array.size", "odd"),
    ]
    details = StatusDetails(violations=[FieldViolation(field, why) for field, why in found])
    explained = document.explain(InvalidRequest("wrong", details=details))
    assert explained.message.splitlines() == [
        "job.yaml:4:9: spec.resources.cpus: at most 4096",
        'job.yaml:6:6: spec.env["A"]: bad',
        "job.yaml:1:1: spec.array.size: odd",
    ]


SCHEDULED = """
name: train
command: [python, train.py]
replicas: 4
gang: {policy: RESTART, start_timeout: 5m}
resources: {named: {license: 2}}
placement:
  require: [{key: zone, operator: IN, values: [a, 'b']}, {key: ssd, operator: EXISTS}]
  strategy: pack
  apart_from: [team=vision]
  apart: true
after_any: [a-1]
after_end: [b-2]
start_after: 2026-12-01T08:00:00+02:00
deadline: 2026-12-02T00:00:00Z
max_queue_time: 1h
disconnect: {stop_after: 10m, lost_after: 11m}
preemption: {max: 2, grace: 2m}
spot: PREFER
retries:
  infrastructure: 5
  rules:
  - causes: [OUT_OF_MEMORY]
    limit: 3
    mutate: {memory_factor: 2, memory_max: 64Gi}
  - exit_codes: [75, 76]
    action: FAIL
  - origins: [PREEMPTION]
    mutate: {on_demand_after: 2, other_host: true}
"""


def test_all_terms_of_a_job_can_be_written() -> None:
    (document,) = read_jobs(SCHEDULED, source="job.yaml", directory=Path())
    spec = document.parcel.spec
    plain = to_plain(spec)
    assert plain["gang"] == {"policy": "RESTART", "start_timeout": "300s"}
    assert plain["placement"] == {
        "require": [
            {"key": "zone", "operator": "IN", "values": ["a", "b"]},
            {"key": "ssd", "operator": "EXISTS"},
        ],
        "strategy": "PACK",
        "apart_from": ["team=vision"],
        "apart": True,
    }
    assert (plain["start_after"], plain["deadline"]) == (
        "2026-12-01T06:00:00Z",
        "2026-12-02T00:00:00Z",
    )
    assert plain["disconnect"] == {"stop_after": "600s", "lost_after": "660s"}
    assert plain["preemption"] == {"max": 2, "grace": "120s"}
    first, second, third = plain["retries"]["rules"]
    assert first["mutate"] == {"memory_factor": 2.0, "memory_max_bytes": str(64 << 30)}
    assert (second["exit_codes"], second["action"]) == ([75, 76], "FAIL")
    assert third["origins"] == ["PREEMPTION"]
    assert spec.resources.named["license"] == 2
    assert (spec.replicas, plain["spot"], plain["max_queue_time"]) == (4, "PREFER", "3600s")


def test_a_time_may_be_said_from_now_on() -> None:
    (document,) = read_jobs(GOOD + "start_after: 2h\n", source="job.yaml", directory=Path())
    ahead = document.parcel.spec.start_after.ToDatetime(dt.UTC) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(minutes=119) < ahead <= dt.timedelta(hours=2)


def test_a_job_for_devices_uses_the_interpreter_of_the_device() -> None:
    text = GOOD + "devices: {selector: [{key: site, operator: IN, values: [tokyo]}]}\n"
    (document,) = read_jobs(text, source="job.yaml", directory=Path())
    spec = document.parcel.spec
    assert [one.key for one in spec.devices.selector] == ["site"]
    assert not spec.environment.caller_interpreter
