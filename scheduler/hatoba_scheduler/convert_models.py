"""Between stored models and the messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import struct_pb2

from hatoba.v1 import job_pb2, model_pb2
from hatoba_scheduler.convert import cause_to_proto, manifest_to_proto, set_time
from hatoba_scheduler.domain.models import Alias, Model, ModelVersion, Move
from hatoba_scheduler.domain.records import Micros

ModelStateValue = model_pb2.ModelState.ValueType
MoveStateValue = model_pb2.AliasMoveState.ValueType


def content_of(
    serving: model_pb2.Serving,
    signature: model_pb2.Signature | None,
    params: Mapping[str, struct_pb2.Value],
) -> bytes:
    """What of a version is only handed through, as it is stored."""
    content = model_pb2.ModelVersion()
    if serving.ByteSize():
        content.serving.CopyFrom(serving)
    if signature is not None and signature.ByteSize():
        content.signature.CopyFrom(signature)
    for name, value in params.items():
        content.params[name].CopyFrom(value)
    return content.SerializeToString(deterministic=True)


def serving_of(version: ModelVersion) -> model_pb2.Serving:
    """How a stored version is served."""
    return model_pb2.ModelVersion.FromString(version.content).serving


def with_images(content: bytes, images: Iterable[model_pb2.ModelImage], now: Micros) -> bytes:
    """Stored content with these images, each in the place of its architecture's earlier one."""
    message = model_pb2.ModelVersion.FromString(content)
    known = {image.architecture: image for image in message.images}
    for image in images:
        fresh = known[image.architecture] = model_pb2.ModelImage()
        fresh.CopyFrom(image)
        fresh.create_time.FromMicroseconds(now)
    ordered = [known[architecture] for architecture in sorted(known)]
    del message.images[:]
    message.images.extend(ordered)
    return message.SerializeToString(deterministic=True)


def with_signature(content: bytes, signature: model_pb2.Signature) -> bytes:
    """Stored content with a signature where it has none."""
    message = model_pb2.ModelVersion.FromString(content)
    if not message.HasField("signature"):
        message.signature.CopyFrom(signature)
    return message.SerializeToString(deterministic=True)


def version_to_proto(
    version: ModelVersion, aliases: Iterable[Alias] = ()
) -> model_pb2.ModelVersion:
    """The message of a version; of its model's aliases those that point to it are named."""
    out = model_pb2.ModelVersion.FromString(version.content)
    out.name, out.version = version.name, version.version
    out.state = ModelStateValue(version.state)
    out.manifest.CopyFrom(manifest_to_proto(version.manifest))
    if version.cause is not None:
        out.cause.CopyFrom(cause_to_proto(version.cause))
    out.metrics.update(dict(version.metrics))
    out.labels.update(dict(version.labels))
    out.aliases.extend(one.alias for one in aliases if one.version == version.version)
    out.datasets.extend(version.datasets)
    for field in _PLAIN:
        setattr(out, field, getattr(version, field))
    set_time(out.create_time, version.create_time)
    return out


_PLAIN = (
    "description",
    "job",
    "attempt",
    "code_version",
    "git_commit",
    "parent",
    "check_job",
    "created_by",
    "trace_id",
)


def model_to_proto(model: Model) -> model_pb2.Model:
    """The message of a model."""
    out = model_pb2.Model(
        name=f"projects/{model.project}/models/{model.model}",
        latest=model.latest,
        protected_aliases=model.protected,
        etag=model.etag,
        created_by=model.created_by,
    )
    set_time(out.create_time, model.create_time)
    for one in model.aliases:
        alias = out.aliases.add(
            alias=one.alias,
            version=one.version,
            protected=one.alias in model.protected,
            updated_by=one.updated_by,
        )
        set_time(alias.update_time, one.update_time)
    return out


def move_to_proto(move: Move) -> model_pb2.AliasMove:
    """The message of a move."""
    out = model_pb2.AliasMove(
        name=move.name,
        alias=move.alias,
        from_version=move.source,
        to_version=move.target,
        state=MoveStateValue(move.state),
        reason=move.reason,
        requested_by=move.requested_by,
        decided_by=move.decided_by,
        comment=move.comment,
    )
    set_time(out.request_time, move.request_time)
    set_time(out.decide_time, move.decide_time)
    return out


def signature_of(report: Mapping[str, Any]) -> model_pb2.Signature | None:
    """The signature that a check's report tells of; None when it tells of none."""
    told = report.get("signature")
    if not isinstance(told, dict):
        return None
    signature = model_pb2.Signature()
    for side in ("input", "output"):
        schema = told.get(side)
        if isinstance(schema, dict):
            getattr(signature, side).update(schema)
        media_type = told.get(f"{side}_type")
        if isinstance(media_type, str):
            setattr(signature, f"{side}_type", media_type[:128])
    return signature


def serving_with_defaults(
    told: model_pb2.Serving, spec: job_pb2.JobSpec | None, manifest: str
) -> model_pb2.Serving:
    """A serving record with code and environment of the job that made the model where it has none,
    and with the model's own tree as its code where there is no other."""
    serving = model_pb2.Serving()
    serving.CopyFrom(told)
    if not serving.handler:
        return serving
    if not serving.code.digest:
        if spec is not None and spec.code.digest:
            serving.code.CopyFrom(spec.code)
        else:
            serving.code.digest = manifest
    if not serving.HasField("environment") and spec is not None and spec.HasField("environment"):
        serving.environment.CopyFrom(spec.environment)
    return serving
