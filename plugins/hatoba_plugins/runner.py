"""What a runner that no host brings is given: in a pod, in an image, beside a replica.

Everything here is the same each time it is asked for, so that a repeated call is byte-identical.
"""

from __future__ import annotations

import json

from google.protobuf import json_format

from hatoba.v1 import worker_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.values import LaunchRequest, RevisionTarget, Target

CLAIM_REFUSED = 83
"""Exit code of a runner whose claim was refused: it says nothing of the one that was granted."""
OWN_CODES = {
    78: "Its runner's settings are wrong; its log names the variable.",
    84: "The command ended well, and its runner could not bring that out.",
    85: "Its runner did not reach the server in time; is `server.advertise` right?",
    86: "Its runner could not bring in what it needs, nor say so.",
}
"""A runner's own exit codes, and what they mean where nothing was committed."""


def runner_environment(ctx: BackendContext, request: LaunchRequest) -> dict[str, str]:
    """Variables with which a runner in a pod or an image finds the server and claims its attempt.

    HATOBA_SERVER (`grpc://HOST:PORT`, or `grpcs://` with TLS), HATOBA_ATTEMPT, HATOBA_FENCE,
    HATOBA_CREDENTIAL, TRACEPARENT; HATOBA_CA (the PEM itself) where the server's authority is not
    a public one; HATOBA_GANG_SIZE of a gang's member. What is to run is in the claim's answer.
    """
    env = _server(ctx)
    env["HATOBA_ATTEMPT"] = request.name
    env["HATOBA_FENCE"] = str(request.fence)
    env["HATOBA_CREDENTIAL"] = request.credential
    if request.traceparent:
        env["TRACEPARENT"] = request.traceparent
    if request.gang_size:
        env["HATOBA_GANG_SIZE"] = str(request.gang_size)
    return env


def bare_environment(request: LaunchRequest) -> dict[str, str]:
    """Variables by which a command without a runner knows which task of which job it is."""
    return {
        "HATOBA_JOB": request.job,
        "HATOBA_ATTEMPT": request.name,
        "HATOBA_ATTEMPT_NUMBER": str(request.number),
        "HATOBA_INDEX": str(request.index),
        "HATOBA_TASK_COUNT": str(request.task_count),
        "TRACEPARENT": request.traceparent,
    }


def replica_environment(
    ctx: BackendContext, deployment: Target, template: RevisionTarget
) -> dict[str, str]:
    """Variables with which `hatoba-entrypoint serve` fetches a revision's files and serves them.

    HATOBA_SERVER and HATOBA_CA as for a runner; HATOBA_CREDENTIAL reads that revision's files;
    HATOBA_REPLICA: the `hatoba.v1.ReplicaSpec` as JSON with proto field names, without `env` and
    `secrets`, which are the container's own. The same for each replica of a revision.
    """
    env = _server(ctx)
    env["HATOBA_REPLICA"] = _replica(deployment, template)
    env["HATOBA_CREDENTIAL"] = template.credential
    return env


def _server(ctx: BackendContext) -> dict[str, str]:
    scheme = "grpcs" if ctx.tls else "grpc"
    env = {"HATOBA_SERVER": f"{scheme}://{ctx.advertise}"}
    if ctx.ca:
        env["HATOBA_CA"] = ctx.ca
    return env


def _replica(deployment: Target, template: RevisionTarget) -> str:
    spec = worker_pb2.ReplicaSpec()
    spec.CopyFrom(template.template)
    spec.deployment = deployment.deployment
    spec.ClearField("env")
    spec.ClearField("secrets")
    told = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def launch_message(member: LaunchRequest) -> worker_pb2.LaunchAttempt:
    """What a runner is told of an attempt; always the same bytes for the same attempt."""
    spec = member.spec
    message = worker_pb2.LaunchAttempt(
        attempt=member.name,
        fence=member.fence,
        job=member.job,
        index=member.index,
        number=member.number,
        command=spec.command,
        env=spec.env,
        secrets=spec.secrets,
        environment=spec.environment,
        resources=spec.resources,
        gpus=member.placement.gpus,
        inputs=spec.inputs,
        traceparent=member.traceparent,
        task_count=member.task_count,
        job_uid=member.job_uid,
        gang_size=member.gang_size,
        generation=member.generation,
    )
    for key, value in spec.params.items():
        message.params[key].CopyFrom(value)
    message.stop_grace.CopyFrom(spec.stop_grace)
    if member.placement.memory:
        message.resources.memory_bytes = member.placement.memory
    if member.stop_after:
        message.stop_after.FromMicroseconds(round(member.stop_after * 1e6))
    if spec.HasField("timeout"):
        message.timeout.CopyFrom(spec.timeout)
    if spec.HasField("code"):
        message.code.CopyFrom(spec.code)
    return message
