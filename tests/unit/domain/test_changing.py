"""A changed record is what `dataclasses.replace` would make of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from domain_rows import new_job

from hatoba_scheduler.domain.changing import changed


def test_other_values_where_told_and_the_same_elsewhere() -> None:
    job = new_job()
    found = changed(job, version=job.version + 1, queue="other")
    assert found == replace(job, version=job.version + 1, queue="other")
    assert (job.version, job.queue) != (found.version, found.queue)


def test_it_is_as_frozen_as_before() -> None:
    with pytest.raises(FrozenInstanceError):
        changed(new_job(), version=2).version = 3  # type: ignore[misc]


def test_a_field_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        changed(new_job(), colour="red")  # type: ignore[call-arg]
