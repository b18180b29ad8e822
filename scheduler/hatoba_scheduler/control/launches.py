"""From a stored intent to what a backend is asked: always the same values for the same attempt."""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf import struct_pb2

from hatoba.runs import mark_of
from hatoba.v1 import job_pb2
from hatoba_plugins.values import Handle, LaunchRequest, Placement, Ref
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.records import Attempt, Job

PLACEHOLDER = re.compile(r"\$\{params\.([A-Za-z_][A-Za-z0-9_.-]*)\}")


def param_text(value: struct_pb2.Value) -> str:
    """A parameter as it appears in a command: whole numbers without a fraction."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return str(int(number)) if number.is_integer() else repr(number)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return value.string_value


def unknown_params(spec: job_pb2.JobSpec) -> list[tuple[int, str]]:
    """(argument, name) of each placeholder in the command that names no parameter."""
    return [
        (position, name)
        for position, argument in enumerate(spec.command)
        if "${" in argument
        for name in PLACEHOLDER.findall(argument)
        if name not in spec.params
    ]


def filled_in(argument: str, params: Mapping[str, struct_pb2.Value]) -> str:
    """An argument with its placeholders replaced."""
    if "${" not in argument:
        return argument
    return PLACEHOLDER.sub(lambda found: param_text(params[found[1]]), argument)


def _filled(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """The specification with its placeholders replaced; itself when there are none."""
    if not any("${" in argument for argument in spec.command):
        return spec
    filled = job_pb2.JobSpec()
    filled.CopyFrom(spec)
    filled.command[:] = [filled_in(argument, spec.params) for argument in spec.command]
    return filled


def _for_device(spec: job_pb2.JobSpec, device: str) -> job_pb2.JobSpec:
    """The specification as one device of those that it is for gets it."""
    own = job_pb2.JobSpec()
    own.CopyFrom(spec)
    own.ClearField("devices")
    own.env["HATOBA_DEVICE"] = device
    return own


def launch_request(
    job: Job,
    attempt: Attempt,
    spec: job_pb2.JobSpec,
    cluster_id: str,
    credential: str = "",
    spot_losses: int = 0,
) -> LaunchRequest:
    """What the backend is asked for one attempt; its runner, if any, claims with `credential`.

    `spot_losses`: of its task, which do not change while the attempt is its newest.
    """
    if job.terms.devices:
        spec = _for_device(spec, job.terms.devices[attempt.index])
    return LaunchRequest(
        name=attempt.name,
        fence=attempt.fence,
        job=job_name(job.project, job.name),
        job_uid=job.uid,
        index=attempt.index,
        number=attempt.number,
        task_count=job.size,
        spec=_filled(spec),
        placement=Placement(attempt.host, attempt.gpus, attempt.reserved.memory),
        traceparent=f"00-{job.trace_id}-{attempt.span_id}-{'01' if job.sampled else '00'}",
        labels=(
            ("cluster_id", cluster_id),
            ("job_uid", job.uid),
            ("index", str(attempt.index)),
            ("number", str(attempt.number)),
        ),
        gang_size=job.size if job.terms.gang else 0,
        generation=attempt.generation,
        stop_after=job.terms.stop_after,
        credential=credential,
        spot_losses=spot_losses,
    )


def encode_handle(handle: Handle) -> bytes:
    """A handle as it is stored."""
    return f"{handle.version}:{handle.data}".encode()


def decode_handle(stored: bytes) -> Handle | None:
    """A stored handle; None when there is none yet."""
    if not stored:
        return None
    version, _, data = stored.decode().partition(":")
    return Handle(int(version), data)


def ref_of(attempt: Attempt) -> Ref:
    """The attempt as a backend is spoken to of it."""
    handle, mark = decode_handle(attempt.handle), mark_of(attempt.nonce)
    return Ref(attempt.name, attempt.fence, handle, attempt.host, mark)
