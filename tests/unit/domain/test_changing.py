"""A changed record is what `dataclasses.replace` would make of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
from domain_rows import new_job

from hatoba_scheduler.domain.changing import changed, copier, quick
from hatoba_scheduler.domain.records import Job


def test_other_values_where_told_and_the_same_elsewhere() -> None:
    job = new_job()
    found = changed(job, version=job.version + 1, queue="other")
    assert found == replace(job, version=job.version + 1, queue="other")
    assert (job.version, job.queue) != (found.version, found.queue)


def test_a_copier_copies_with_the_values_it_is_given() -> None:
    job = new_job()
    assert copier(Job, "queue", "uid")(job, "other", "u") == replace(job, uid="u", queue="other")


def test_it_is_as_frozen_as_before() -> None:
    with pytest.raises(FrozenInstanceError):
        changed(new_job(), version=2).version = 3  # type: ignore[misc]


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        changed(new_job(), colour="red")  # type: ignore[call-arg]


def test_a_record_made_quickly_is_as_one_made_by_its_dataclass() -> None:
    @dataclass(frozen=True, slots=True)
    class Plain:
        one: int
        two: str = "b"

    @quick
    @dataclass(frozen=True, slots=True)
    class Quick:
        one: int
        two: str = "b"

    assert repr(Quick(1)).split(".")[-1] == repr(Plain(1)).split(".")[-1].replace("Plain", "Quick")
    assert Quick(1) == Quick(one=1, two="b") != Quick(1, "c")
    assert hash(Quick(1)) == hash(Plain(1))
    with pytest.raises(FrozenInstanceError):
        Quick(1).one = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Quick(1, three=3)  # type: ignore[call-arg]
