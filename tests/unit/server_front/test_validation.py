"""The contract's rules, worded for people."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from hatoba import v1
from hatoba._vendor.buf.validate import validate_pb2
from hatoba.v1 import common_pb2, job_pb2, runner_pb2, worker_pb2
from hatoba_scheduler import validation
from hatoba_scheduler.errors import InvalidArgument


def _patterns() -> Iterator[str]:
    for name in sorted(one.name for one in pkgutil.iter_modules(v1.__path__)):
        if not name.endswith("_pb2"):
            continue
        module = importlib.import_module(f"hatoba.v1.{name}")
        for message in module.DESCRIPTOR.message_types_by_name.values():
            yield from _of_message(message)


def _of_message(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        rules: Any = field.GetOptions().Extensions[validate_pb2.field]
        parts = (rules, rules.map.keys, rules.map.values, rules.repeated.items)
        yield from (part.string.pattern for part in parts if part.string.pattern)


def test_every_pattern_of_the_contract_is_put_into_words() -> None:
    assert set(_patterns()) <= set(validation.PATTERN_WORDS)


def test_no_words_are_kept_for_patterns_that_are_gone() -> None:
    assert set(validation.PATTERN_WORDS) == set(_patterns())


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (job_pb2.JobSpec(name="Bad Name", command=["a"]), "name", "choose a name such as"),
        (job_pb2.JobSpec(name="a"), "command", "must contain at least 1"),
        (
            job_pb2.JobSpec(name="a", command=["a"], env={"1": "x"}),
            "env['1'] (key)",
            "the key must be an environment variable's name",
        ),
        (
            job_pb2.JobSpec(name="a", command=["a"], secrets=[job_pb2.SecretRef(name="/")]),
            "secrets[0].name",
            "got '/'",
        ),
        (common_pb2.Resources(cpus=float("nan")), "cpus", "got nan"),
        (common_pb2.Resources(cpus=float("inf")), "cpus", "got inf"),
        (common_pb2.Resources(memory_bytes=-4), "memory_bytes", "got -4; send a value in that"),
        (job_pb2.SubmitJobRequest(), "spec", "set it"),
        (
            job_pb2.JobSpec(name="a", command=["a"], after_ok=["b", "b"]),
            "after_ok",
            "name each once",
        ),
        (
            runner_pb2.CommitAttemptRequest(attempt="a", kind=99),  # type: ignore[arg-type]
            "kind",
            "use one of the values that the contract names",
        ),
    ],
)
def test_a_broken_rule_says_where_what_and_what_to_do(message: Any, field: str, words: str) -> None:
    found = validation.violations(message)
    assert found[0].field == field
    assert any(words in violation.text() for violation in found)
    assert all(violation.remedy for violation in found)


def test_values_that_may_be_secret_are_not_shown() -> None:
    spec = job_pb2.JobSpec(name="a", command=["a"], env={"TOKEN": "hunter2" * 10_000})
    (violation,) = validation.violations(spec)
    assert violation.value == "70000 bytes"


def test_paths_may_begin_elsewhere() -> None:
    (violation,) = validation.violations(common_pb2.Resources(gpus=-1), "items[3].spec.resources")
    assert violation.field == "items[3].spec.resources.gpus"


def test_batch_items_are_left_to_the_servicer() -> None:
    bad = job_pb2.SubmitJobsItem(spec=job_pb2.JobSpec(name="BAD"), request_id=" ")
    validation.check(job_pb2.SubmitJobsRequest(items=[bad]))
    assert validation.violations(bad.spec)


def test_items_inside_a_stream_message_are_checked() -> None:
    item = worker_pb2.WorkerItem(heartbeat=runner_pb2.HeartbeatRequest())
    with pytest.raises(InvalidArgument) as caught:
        validation.check(worker_pb2.WorkerServiceConnectRequest(items=[item]))
    assert caught.value.field_violations[0].field == "items[0].heartbeat.attempt"


def test_a_good_message_passes_after_warming_up() -> None:
    validation.warm([job_pb2.JobSpec, job_pb2.GetJobRequest])
    validation.check(job_pb2.JobSpec(name="digits", command=["true"]))
