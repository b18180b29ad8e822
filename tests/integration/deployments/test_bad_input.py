"""What is refused, and what the refusal names: the field, the value, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from wire import Wire

from hatoba.v1 import deployment_pb2

from .conftest import Deployment, create, refusal, settled, wanted

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
WRONG = grpc.StatusCode.FAILED_PRECONDITION
Spec = deployment_pb2.DeploymentSpec


@dataclass(frozen=True)
class Case:
    """A specification that is refused: with which code, and which words."""

    name: str
    change: Callable[[Spec], object]
    code: grpc.StatusCode
    words: tuple[str, ...]


def _steps(spec: Spec, *percents: int) -> None:
    for percent in percents:
        spec.strategy.steps.add(percent=percent)


def _stuck(spec: Spec) -> None:
    spec.strategy.max_surge = 0


def _on_plain(spec: Spec) -> None:
    spec.backend = "plain"
    _steps(spec, 10)


CASES = [
    Case("model.missing", lambda s: setattr(s, "model", "digits:99"), NOT_FOUND, ("digits:99",)),
    Case("model.unknown", lambda s: setattr(s, "model", "nope:1"), NOT_FOUND, ("nope:1",)),
    Case("alias.unknown", lambda s: setattr(s, "model", "digits@no"), NOT_FOUND, ("'no'",)),
    Case(
        "model.form", lambda s: setattr(s, "model", "Digits!"), INVALID, ("spec.model", "Digits!")
    ),
    Case("model.kind", lambda s: setattr(s, "model", "datasets/x:1"), INVALID, ("spec.model",)),
    Case("model.failed", lambda s: setattr(s, "model", "broken:1"), WRONG, ("FAILED", "READY")),
    Case("model.bare", lambda s: setattr(s, "model", "bare:1"), WRONG, ("no handler",)),
    Case("backend", lambda s: setattr(s, "backend", "moc"), INVALID, ("'moc'", "'mock'")),
    Case("canary", _on_plain, INVALID, ("spec.strategy.steps", "'plain'", "canary")),
    Case("steps", lambda s: _steps(s, 50, 20), INVALID, ("steps[1].percent", "20", "50")),
    Case("percent", lambda s: _steps(s, 100), INVALID, ("percent", "100")),
    Case("stuck", _stuck, INVALID, ("max_surge", "max_unavailable", "both 0")),
    Case("env", lambda s: s.env.update(HATOBA_X="1"), INVALID, ("HATOBA_X", "another name")),
    Case("nul", lambda s: s.env.update(A="a\0b"), INVALID, ("A", "NUL")),
    Case("secret", lambda s: s.secrets.add(name="key"), INVALID, ("secrets[0]", "'key'")),
    Case("capture", lambda s: setattr(s.capture, "rate", 0.5), INVALID, ("capture.dataset",)),
    Case("rate", lambda s: setattr(s.capture, "rate", 2), INVALID, ("capture.rate", "2")),
    Case("replicas", lambda s: setattr(s, "replicas", -1), INVALID, ("spec.replicas", "-1")),
    Case("gpus", lambda s: setattr(s.resources, "gpus", 9000), INVALID, ("gpus", "9000")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_deployment_that_cannot_be_is_refused_with_its_reason(
    wire: Wire, name: str, case: Case
) -> None:
    spec = wanted()
    case.change(spec)
    for validate_only in (True, False):
        request = deployment_pb2.CreateDeploymentRequest(
            deployment=name, spec=spec, validate_only=validate_only
        )
        refused = await refusal(wire, request)
        assert refused.code() is case.code, refused.details()
        for word in case.words:
            assert word in refused.details()
    missing = deployment_pb2.GetDeploymentRequest(name=name)
    assert (await refusal(wire, missing)).code() is NOT_FOUND


async def test_all_that_is_wrong_is_named_at_once(wire: Wire, name: str) -> None:
    spec = wanted(backend="nowhere")
    spec.env["HATOBA_TOKEN"] = "x"
    _stuck(spec)
    refused = await refusal(
        wire, deployment_pb2.CreateDeploymentRequest(deployment=name, spec=spec)
    )
    status = status_pb2.Status.FromString(
        dict(refused.trailing_metadata())["grpc-status-details-bin"]
    )
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in status.details)
    assert [one.field for one in found.field_violations] == [
        "spec.backend",
        "spec.env['HATOBA_TOKEN']",
        "spec.strategy.max_surge",
    ]


async def test_a_check_alone_makes_nothing(wire: Wire, name: str) -> None:
    request = deployment_pb2.CreateDeploymentRequest(
        deployment=name, spec=wanted(), validate_only=True
    )
    checked = await wire.once(request, Deployment)
    assert checked.spec.limits.max_queue == 64
    missing = deployment_pb2.GetDeploymentRequest(name=name)
    assert (await refusal(wire, missing)).code() is NOT_FOUND


def _update(paths: tuple[str, ...], **fields: object) -> deployment_pb2.UpdateDeploymentRequest:
    request = deployment_pb2.UpdateDeploymentRequest(spec=Spec(**fields))  # type: ignore[arg-type]
    request.update_mask.paths.extend(paths)
    return request


STEERING: list[tuple[Message, grpc.StatusCode, str]] = [
    (deployment_pb2.SetTrafficRequest(weights={1: 60, 2: 50}), INVALID, "add up to 110"),
    (deployment_pb2.SetTrafficRequest(weights={1: 50, 7: 50}), WRONG, "revision 7 has no ready"),
    (deployment_pb2.PauseRolloutRequest(), WRONG, "no roll-out is under way"),
    (deployment_pb2.ResumeRolloutRequest(), WRONG, "no roll-out is under way"),
    (deployment_pb2.PromoteRolloutRequest(), WRONG, "no roll-out is under way"),
    (deployment_pb2.RollBackDeploymentRequest(), WRONG, "no revision before 1"),
    (deployment_pb2.RollBackDeploymentRequest(revision=9), WRONG, "there is no revision 9"),
    (_update(()), INVALID, "update_mask"),
    (_update(("nope",)), INVALID, "nope"),
    (_update(("backend",), backend="null"), INVALID, "cannot be changed"),
    (_update(("replicas",), replicas=-1), INVALID, "replicas"),
    (_update(("model",), model="digits:99"), NOT_FOUND, "digits:99"),
    (_update(("capture",), capture={"rate": 1.0}), INVALID, "capture.dataset"),
]


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    STEERING,
    ids=[f"{type(one).__name__}-{words}" for one, _, words in STEERING],
)
async def test_what_cannot_be_done_now_is_refused_and_changes_nothing(
    wire: Wire, name: str, request_: Message, code: grpc.StatusCode, words: str
) -> None:
    await create(wire, name)
    before = await settled(wire, name)
    request = type(request_).FromString(request_.SerializeToString())
    request.name = name  # type: ignore[attr-defined]
    refused = await refusal(wire, request)
    assert refused.code() is code, refused.details()
    assert words in refused.details()
    after = await wire.once(deployment_pb2.GetDeploymentRequest(name=name), Deployment)
    assert (after.etag, after.generation) == (before.etag, before.generation)


async def test_names_that_are_none_are_refused(wire: Wire) -> None:
    for text in ("Reader!", "models/digits", "projects/x"):
        request = deployment_pb2.GetDeploymentRequest(name=text)
        assert (await refusal(wire, request)).code() is INVALID
    for text in ("xyz", "a/b/c", "F" * 31):
        explain = deployment_pb2.ExplainPredictionRequest(name=text)
        refused = await refusal(wire, explain, deployment_pb2.PredictionExplanation)
        assert refused.code() is INVALID
        assert "hatoba-trace-id" in refused.details()


async def test_a_name_that_is_taken_is_told(wire: Wire, name: str) -> None:
    await create(wire, name)
    request = deployment_pb2.CreateDeploymentRequest(deployment=name, spec=wanted())
    refused = await refusal(wire, request)
    assert refused.code() is grpc.StatusCode.ALREADY_EXISTS
    assert f"hatoba deploy --name {name}" in refused.details()


async def test_logs_of_a_backend_without_them_are_refused(wire: Wire, name: str) -> None:
    await create(wire, name)
    await settled(wire, name)
    request = deployment_pb2.TailReplicaLogsRequest(deployment=name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [one async for one in wire.stream(request, deployment_pb2.TailReplicaLogsResponse)]
    assert caught.value.code() is WRONG
    request.replica = "r-nobody"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [one async for one in wire.stream(request, deployment_pb2.TailReplicaLogsResponse)]
    assert caught.value.code() is NOT_FOUND
