"""What of a specification Batch can never run, told at submit. Pure."""

from __future__ import annotations

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.batch_spot.manifest import (
    LEAST_TIMEOUT,
    Manifest,
    image_of,
    manifest,
    secret_variable,
    size,
)
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.backends.batch_spot.queues import choose
from hatoba_plugins.checks import lacking
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import Capabilities, LaunchRequest, Placement, Problem

RESERVED = "AWS_BATCH"
PAYLOAD = 30 * 1024
DEFINITION = 24 * 1024
RUNNERS_OWN = 8 * 1024
"""Bytes left for what a runner is given: address, authority, credential."""
MOST_ARGUMENTS = "put what is large into a file of the code or an input"


def problems_of(
    spec: job_pb2.JobSpec, options: BatchOptions, capabilities: Capabilities
) -> list[Problem]:
    """All that is wrong with it here."""
    found = lacking(spec, capabilities, options.image)
    if not image_of(spec, options):
        found.append(Problem("environment.image", "jobs on Batch run in an image: name one"))
    found += _of_names(spec)
    if options.runner == "none":
        found += _of_timeout(spec)
    if len(spec.backend_options.fields):
        found.append(Problem("backend_options", "Batch takes no options of jobs; leave them out"))
    return found or [*_of_place(spec, options), *_of_size(spec, options)]


def _of_names(spec: job_pb2.JobSpec) -> list[Problem]:
    problems = [
        Problem(f"env[{name}]", f"Batch keeps names that begin with {RESERVED}; use another")
        for name in spec.env
        if name.startswith(RESERVED)
    ]
    for at, secret in enumerate(spec.secrets):
        if secret_variable(secret).startswith(RESERVED):
            told = f"Batch keeps names that begin with {RESERVED}; give it another `env`"
            problems.append(Problem(f"secrets[{at}].env", told))
    return problems


def _of_timeout(spec: job_pb2.JobSpec) -> list[Problem]:
    if not spec.HasField("timeout") or spec.timeout.ToTimedelta().total_seconds() >= LEAST_TIMEOUT:
        return []
    told = f"without a runner Batch itself ends it, and not before {LEAST_TIMEOUT} s"
    return [Problem("timeout", told)]


def _of_place(spec: job_pb2.JobSpec, options: BatchOptions) -> list[Problem]:
    try:
        choose(_example(spec), options.pools(), options.on_demand_after)
    except Invalid as error:
        field = "resources.gpus" if spec.resources.gpus else "spot"
        return [Problem(field, error.message)]
    return []


def _of_size(spec: job_pb2.JobSpec, options: BatchOptions) -> list[Problem]:
    wanted = _manifest(spec, options)
    problems = []
    if (payload := size(wanted.submit)) > PAYLOAD:
        what = "command and env"
        told = f"{what} make {payload} bytes of a submit, and Batch takes {PAYLOAD}"
        problems.append(Problem("env", f"{told}; {MOST_ARGUMENTS}"))
    if (content := size(wanted.definition)) > DEFINITION:
        told = f"they make a job definition of {content} bytes, and Batch takes {DEFINITION}"
        problems.append(Problem("secrets", f"{told}; use fewer"))
    return problems


def _manifest(spec: job_pb2.JobSpec, options: BatchOptions) -> Manifest:
    """As large as one of this specification can be."""
    environment = {"HATOBA_CA": "x" * RUNNERS_OWN} if options.runner == "image" else {}
    return manifest(_example(spec), options, "q" * 128, environment, "c" * 64)


def _example(spec: job_pb2.JobSpec) -> LaunchRequest:
    return LaunchRequest(
        name="n" * 63,
        fence=2**40,
        job="j" * 128,
        job_uid="u" * 36,
        index=2**20,
        number=1_000,
        task_count=2**20,
        spec=spec,
        placement=Placement(),
        traceparent="t" * 55,
    )
