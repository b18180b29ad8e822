"""Opening a backend in a test, and what to launch on it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf import json_format

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Backend, BackendContext, BackendType, Clock, JobBackend
from hatoba_plugins.conformance import GatedBudget, NoWorkers
from hatoba_plugins.values import (
    GroupKind,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    Observation,
    Placement,
    Ref,
)


async def no_secret(name: str) -> str:
    raise KeyError(name)


def context(clock: Clock) -> BackendContext:
    budget, workers = GatedBudget(), NoWorkers()
    return BackendContext(clock, random.Random(1), "c", 1, "", budget, no_secret, workers)


@asynccontextmanager
async def opened(
    kind: BackendType, clock: Clock, **options: object
) -> AsyncIterator[tuple[Backend, JobBackend]]:
    """The backend and its job role."""
    async with kind.open("test", kind.options(**options), context(clock)) as backend:
        assert backend.jobs is not None
        yield backend, backend.jobs


def spec(**backend_options: Any) -> job_pb2.JobSpec:
    made = job_pb2.JobSpec(name="x", command=["true"])
    return json_format.ParseDict({"backend_options": backend_options}, made)


def request(name: str, wanted: job_pb2.JobSpec | None = None) -> LaunchRequest:
    wanted = wanted or spec()
    return LaunchRequest(name, 1, "job", f"uid-{name}", 0, 1, 1, wanted, Placement(), "")


def single(*requests: LaunchRequest) -> LaunchGroup:
    return LaunchGroup(GroupKind.SINGLE, requests)


async def launch(jobs: JobBackend, name: str, **script: Any) -> LaunchOutcome:
    """Launch one by its mock script."""
    (outcome,) = await jobs.launch(single(request(name, spec(mock=script))))
    return outcome


async def launch_spec(jobs: JobBackend, name: str, wanted: job_pb2.JobSpec) -> LaunchOutcome:
    """Launch one of this specification."""
    (outcome,) = await jobs.launch(single(request(name, wanted)))
    return outcome


async def observe(jobs: JobBackend, name: str) -> Observation:
    (seen,) = await jobs.observe([ref(name)])
    return seen


def ref(name: str) -> Ref:
    return Ref(name, 1, None)
