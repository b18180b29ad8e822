"""Whatever is sent to whatever method: a refusal with a code of ours, and the server goes on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_process import HatobaServer
from wire import path_of

from hatoba.artifacts.manifest import canonical_bytes
from hatoba.v1 import (
    admin_pb2,
    artifact_pb2,
    common_pb2,
    dataset_pb2,
    deployment_pb2,
    job_pb2,
    model_pb2,
    queue_pb2,
    runner_pb2,
    schedule_pb2,
    worker_pb2,
)

Field = descriptor.FieldDescriptor
FILES = (
    *(job_pb2, queue_pb2, admin_pb2, runner_pb2, worker_pb2, artifact_pb2),
    *(dataset_pb2, model_pb2, deployment_pb2, schedule_pb2),
)
OURS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
}
TEXTS = [
    *("", "a", "0", "1.1", "a" * 16, "0" * 16, "0" * 32, "x" * 300, "true", "mock", "null"),
    *("fuzz-1", "projects/default/jobs/fuzz-1", "default", "projects/x/queues/q", "hosts/h"),
    *("tokens/x", "priority", "hold", "weight", "state = RUNNING", "active=true", "labels.a = b"),
    *("@daily", "0 0 31 2 *", "Europe/Berlin", "projects/default/schedules/fuzz", "cron"),
    *("fuzz", "fuzz:1", "fuzz@production", "datasets/fuzz:1", "code/fuzz:1", "deployments/fuzz"),
    *("projects/default/models/fuzz/versions/1", "projects/default/models/fuzz/moves/1"),
    *("../..", "\0", "Größe", "\u202e", "${params.x}", "%s", "' OR 1=1 --", "sha256:" + "0" * 64),
]
INTEGERS = [0, 1, 2, 3, -1, 100, 1000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
DOUBLES = [0.0, 1.0, -1.0, 0.5, 1e308, float("inf"), float("nan"), 5e-324]


def unary_methods() -> Iterator[descriptor.MethodDescriptor]:
    """Every method that takes one message and answers one."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not (method.client_streaming or method.server_streaming):
                    yield method


def good_requests() -> Iterator[Message]:
    """Requests that would be carried out."""
    spec = job_pb2.JobSpec(name="fuzz", command=["true", "${params.x}"], backend="null")
    spec.params["x"].number_value, spec.env["A"], spec.labels["a"] = 1, "1", "b"
    spec.array.size, spec.retries.user, spec.timeout.seconds = 3, 1, 10
    spec.resources.cpus, spec.environment.python = 1, ""
    name, queue = "fuzz-1", queue_pb2.Queue(name="default", weight=1)
    yield job_pb2.SubmitJobRequest(spec=spec, request_id="fuzz")
    yield job_pb2.SubmitJobRequest(spec=spec)
    yield job_pb2.SubmitJobsRequest(items=[job_pb2.SubmitJobsItem(spec=spec)] * 2)
    yield job_pb2.ListJobsRequest(page_size=2, filter="active = true AND labels.a = b")
    yield job_pb2.CountJobsRequest(filter="state != FAILED")
    yield job_pb2.ListTasksRequest(job=name, page_size=1)
    yield job_pb2.ListAttemptsRequest(job=name, page_size=1, index=0)
    yield job_pb2.CancelJobsRequest(jobs=[name], reason="x", request_id="fuzz")
    update = job_pb2.UpdateJobRequest(name=name, priority=1, queue="default")
    update.update_mask.paths.append("priority")
    yield update
    rerun = job_pb2.RerunJobRequest(job=name, env={"B": "2"})
    rerun.params["y"].string_value = "z"
    yield rerun
    yield job_pb2.QueryMetricsRequest(job=name, keys=["loss"], index=0, max_points=5)
    yield queue_pb2.CreateQueueRequest(queue_id="fuzz", queue=queue)
    change = queue_pb2.UpdateQueueRequest(queue=queue)
    change.update_mask.paths.append("weight")
    yield change
    span = job_pb2.Span(trace_id="0" * 32, span_id="0" * 16, name="x", kind="client")
    yield admin_pb2.PushSpansRequest(spans=[span])
    yield admin_pb2.CreateTokenRequest(principal="fuzz", role=admin_pb2.ROLE_VIEWER)
    yield from good_things(TREE)


def good_things(tree: common_pb2.ManifestRef) -> Iterator[Message]:
    """Requests about data, models and deployments of a stored tree."""
    item = dataset_pb2.DatasetItem(id="a", path="a", data=b"1", media_type="text/plain")
    item.attributes["label"] = 1
    yield dataset_pb2.CreateDatasetVersionRequest(dataset="fuzz", manifest=tree, message="x")
    yield dataset_pb2.AppendDatasetItemsRequest(dataset="fuzz", items=[item], request_id="fuzz")
    yield dataset_pb2.CommitDatasetRequest(dataset="fuzz")
    yield dataset_pb2.ListDatasetItemsRequest(name="fuzz", filter="label = 1", page_size=1)
    between = dataset_pb2.DiffDatasetVersionsRequest(to="fuzz")
    setattr(between, "from", "fuzz:1")
    yield between
    yield dataset_pb2.CreateCodeVersionRequest(code="fuzz", manifest=tree, git_commit="0" * 40)
    model = model_pb2.RegisterModelRequest(model="fuzz", manifest=tree, datasets=["fuzz:1"])
    model.params["x"].number_value, model.metrics["loss"], model.labels["a"] = 1, 0.5, "b"
    yield model
    yield model_pb2.SetAliasRequest(model="fuzz", alias="production", version=1, expected=0)
    yield model_pb2.UpdateModelRequest(name="fuzz", protected_aliases=["production"])
    yield model_pb2.DecideAliasMoveRequest(name=f"{MODEL}/moves/1", approve=True)
    yield model_pb2.GetLineageRequest(name="fuzz:1", depth=3)
    spec = deployment_pb2.DeploymentSpec(model="fuzz@production", backend="mock", replicas=1)
    spec.strategy.steps.add(percent=10).hold.seconds = 1
    spec.capture.dataset, spec.capture.rate, spec.env["A"] = "fuzz", 0.5, "1"
    yield deployment_pb2.CreateDeploymentRequest(deployment="fuzz", spec=spec)
    change = deployment_pb2.UpdateDeploymentRequest(name="fuzz", spec=spec)
    change.update_mask.paths.append("strategy")
    yield change
    yield deployment_pb2.SetTrafficRequest(name="fuzz", weights={1: 100})
    yield deployment_pb2.RollBackDeploymentRequest(name="fuzz", revision=1, reason="x")
    report = deployment_pb2.ReportPredictionsRequest(batch="0" * 16)
    report.predictions.add(trace_id="0" * 32, deployment="fuzz", revision=1).time.seconds = 1
    report.captured.add(project="default", dataset="fuzz", item=item)
    yield report


MODEL = "projects/default/models/fuzz"
MANIFEST = artifact_pb2.Manifest()
MANIFEST.entries.add(path="a", type=artifact_pb2.ENTRY_TYPE_FILE, mode=0o644)
TREE = common_pb2.ManifestRef(
    digest=f"sha256:{hashlib.sha256(canonical_bytes(MANIFEST)).hexdigest()}", files=1
)
GOOD = [artifact_pb2.CreateManifestRequest(manifest=MANIFEST), *good_requests()]
METHODS = sorted(unary_methods(), key=lambda method: method.full_name)


class Maker:
    """Makes messages: mostly of values that get past the first checks."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def message(self, kind: descriptor.Descriptor, depth: int = 0) -> Message:
        """A message of this kind."""
        made: Message = GetMessageClass(kind)()
        for field in kind.fields:
            if self._random.random() < (0.7 if depth < 2 else 0.25) and depth < 6:
                self._fill(made, field, depth)
        return made

    def _fill(self, made: Message, field: Field, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            for _ in range(self._random.randint(0, 3)):
                self._put(getattr(made, field.name), self._value(key, depth), value, depth)
        elif field.is_repeated:
            for _ in range(self._random.choice([0, 1, 1, 2, 5])):
                getattr(made, field.name).append(self._value(field, depth))
        elif entry is not None:
            getattr(made, field.name).CopyFrom(self.message(entry, depth + 1))
        else:
            setattr(made, field.name, self._value(field, depth))

    def _put(self, mapping: Any, key: Any, value: Field, depth: int) -> None:
        if value.message_type is not None:
            mapping[key].CopyFrom(self.message(value.message_type, depth + 1))
        else:
            mapping[key] = self._value(value, depth)

    def _value(self, field: Field, depth: int) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type, depth + 1)
        if field.cpp_type == Field.CPPTYPE_STRING:
            text = self._random.choice(TEXTS)
            return text.encode() if field.type == Field.TYPE_BYTES else text
        if field.cpp_type == Field.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if field.cpp_type in (Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT):
            return self._random.choice(DOUBLES)
        if field.cpp_type == Field.CPPTYPE_ENUM:
            return self._random.choice([0, 1, 2, 3, 12, 99])
        bits = 32 if field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_UINT32) else 64
        signed = field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return self._random.choice([n for n in INTEGERS if low <= n <= high])

    def mutated(self, good: Message) -> Message:
        """A good message with one or two fields changed, at whatever depth."""
        made: Message = type(good)()
        made.CopyFrom(good)
        for _ in range(self._random.randint(1, 2)):
            place: Any = made
            depth = 0
            while (inner := self._inner(place)) and self._random.random() < 0.7:
                place, depth = self._random.choice(inner), depth + 1
            field = self._random.choice([*place.DESCRIPTOR.fields])
            place.ClearField(field.name)
            self._fill(place, field, depth)
        return made

    def _inner(self, message: Message) -> list[Message]:
        """The messages that are set in a message."""
        inner: list[Message] = []
        for field, value in message.ListFields():
            entry = field.message_type
            if entry is None or entry.GetOptions().map_entry or not entry.fields:
                continue
            inner.extend(value if field.is_repeated else [value])
        return inner

    def damaged(self, raw: bytes) -> bytes:
        """The bytes, in one of three cases not as they were."""
        if self._random.random() < 0.66 or not raw:
            return raw
        data = bytearray(raw)
        for _ in range(self._random.randint(1, 4)):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        return bytes(data[: self._random.randint(1, len(data))])


bounded = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def test_no_message_is_a_fault_of_the_server(server: HatobaServer) -> None:
    metadata = (("authorization", f"Bearer {server.token()}"),)
    with grpc.insecure_channel(server.address) as channel:

        def send(path: str, raw: bytes) -> grpc.StatusCode:
            call: Any = channel.unary_unary(path)
            ended: Any = call.future(raw, metadata=metadata, timeout=10)
            code: grpc.StatusCode = ended.code()
            assert code in OURS, f"{path} {raw!r}: {code} {ended.details()}"
            return code

        @bounded
        @given(method=st.sampled_from(METHODS), seed=st.integers(0, 2**32))
        def any_message(method: descriptor.MethodDescriptor, seed: int) -> None:
            maker = Maker(seed)
            raw = maker.damaged(maker.message(method.input_type).SerializeToString())
            send(f"/{method.containing_service.full_name}/{method.name}", raw)

        @bounded
        @given(good=st.sampled_from(GOOD), seed=st.integers(0, 2**32))
        def nearly_good_message(good: Message, seed: int) -> None:
            maker = Maker(seed)
            send(path_of(good), maker.damaged(maker.mutated(good).SerializeToString()))

        first = [send(path_of(good), good.SerializeToString()) for good in GOOD]
        assert first[:3] == [grpc.StatusCode.OK] * 3
        any_message()
        nearly_good_message()
        count = "/hatoba.v1.JobService/CountJobs"
        assert send(count, b"") is grpc.StatusCode.OK
    assert '"event": "call failed"' not in server.log_text()
    assert '"event": "decision.failed"' not in server.log_text()
