"""A registered model is checked by a job in its environment: READY, or FAILED with the reason."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from server_process import HatobaServer
from serving_house import checked
from trees import put_tree
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, model_pb2

GOOD = b"""\
import json
from pathlib import Path

class Doubler:
    def __init__(self, model_dir):
        self.factor = json.loads((Path(model_dir) / "factor.json").read_text())

    def predict(self, inputs):
        return {"value": inputs["value"] * self.factor}
"""
HANGS = GOOD.replace(b"self.factor = ", b"__import__('time').sleep(60); self.factor = ")
MODEL = {"factor.json": b"2"}
REGISTERING = model_pb2.MODEL_STATE_REGISTERING
READY = model_pb2.MODEL_STATE_READY
FAILED = model_pb2.MODEL_STATE_FAILED


@pytest.fixture
def model() -> str:
    """A model that no other test uses."""
    return f"m{uuid.uuid4().hex[:10]}"


async def register(
    wire: Wire,
    model: str,
    code: bytes | None,
    *,
    handler: str = "serve:Doubler",
    example: bytes = b'{"value": 3}',
    files: dict[str, bytes] | None = None,
    golden: int = 0,
) -> model_pb2.ModelVersion:
    """Register a model whose handler stands in `serve.py` of its code, or (None) in its tree."""
    request = model_pb2.RegisterModelRequest(model=model)
    request.manifest.CopyFrom(await put_tree(wire, MODEL | (files or {})))
    request.serving.handler, request.serving.golden = handler, golden
    request.serving.example.data = example
    request.serving.example.media_type = "application/json"
    if code is not None:
        request.serving.code.CopyFrom(await put_tree(wire, {"serve.py": code}))
    return await wire.once(request, model_pb2.ModelVersion)


async def aliased(wire: Wire, model: str) -> Any:
    request = model_pb2.SetAliasRequest(model=model, alias="production", version=1)
    return await wire.once(request, model_pb2.SetAliasResponse)


async def test_a_good_model_becomes_ready_with_its_signature(wire: Wire, model: str) -> None:
    made = await register(wire, model, GOOD)
    assert (made.state, made.check_job) == (REGISTERING, f"projects/default/jobs/check-{model}-1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await aliased(wire, model)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "REGISTERING" in (refused.value.details() or "")
    found = await checked(wire, made.name)
    assert found.state == READY, found.cause
    assert found.signature.input_type == "application/json"
    assert found.signature.input["type"] == "object"
    assert (await aliased(wire, model)).move.to_version == 1
    job = await wire.call(job_pb2.GetJobRequest(name=found.check_job), job_pb2.Job)
    assert job.spec.labels["hatoba/checks"] == made.name


async def test_a_handler_may_stand_in_the_models_own_tree(wire: Wire, model: str) -> None:
    made = await register(wire, model, None, files={"serve.py": GOOD})
    assert made.serving.code.digest == made.manifest.digest
    assert (await checked(wire, made.name)).state == READY


@pytest.mark.parametrize(
    ("code", "fields", "words"),
    [
        (b"import no_such_module\n", {}, "no_such_module"),
        (GOOD, {"handler": "serve:Tripler"}, "Tripler"),
        (GOOD, {"handler": "other:Doubler"}, "other"),
        (GOOD, {"example": b'{"other": 3}'}, "value"),
        (GOOD, {"example": b"{"}, "JSON"),
    ],
    ids=["import", "class", "module", "example", "no JSON"],
)
async def test_a_bad_model_fails_with_the_reason(
    wire: Wire, model: str, code: bytes, fields: dict[str, Any], words: str
) -> None:
    made = await register(wire, model, code, **fields)
    found = await checked(wire, made.name)
    assert found.state == FAILED
    assert found.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
    assert words in "\n".join(found.cause.last_log_lines)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await aliased(wire, model)
    assert "FAILED" in (refused.value.details() or "")


async def test_golden_cases_have_to_be_answered_as_expected(wire: Wire, model: str) -> None:
    cases = b'{"input": {"value": 3}, "expected": {"value": 6}}\n'
    made = await register(wire, model, GOOD, files={"golden.jsonl": cases}, golden=1)
    found = await checked(wire, made.name)
    assert (found.state, found.serving.golden) == (READY, 1)
    cases += b'{"input": {"value": 4}, "expected": {"value": 9}, "tolerance": 0.5}\n'
    made = await register(wire, model, GOOD, files={"golden.jsonl": cases}, golden=2)
    found = await checked(wire, made.name)
    assert found.state == FAILED
    said = "golden case 2 is answered wrongly: $.value is 8, expected 9 within 0.5"
    assert said in "\n".join(found.cause.last_log_lines)


async def test_a_check_that_cannot_be_submitted_fails_at_once(wire: Wire, model: str) -> None:
    request = model_pb2.RegisterModelRequest(model=model)
    request.manifest.CopyFrom(await put_tree(wire, MODEL))
    request.serving.handler = "serve:Doubler"
    request.serving.example.data = b"1"
    request.serving.environment.image = "registry.example/serve:1"
    made = await wire.once(request, model_pb2.ModelVersion)
    assert (made.state, made.cause.code) == (FAILED, common_pb2.CAUSE_CODE_MODEL_REFUSED)
    assert "image" in made.cause.message


async def test_what_is_being_checked_is_not_removed(wire: Wire, model: str) -> None:
    made = await register(wire, model, HANGS)
    request = model_pb2.DeleteModelVersionRequest(name=made.name)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wire.once(request, model_pb2.ModelVersion)
    assert made.check_job in (refused.value.details() or "")
    await wire.cancel(made.check_job)
    found = await checked(wire, made.name)
    assert (found.state, found.cause.code) == (FAILED, common_pb2.CAUSE_CODE_CANCELLED)
    await wire.once(request, model_pb2.ModelVersion)


async def test_a_check_outlives_the_server(
    own_server: HatobaServer, own_wire: Wire, model: str
) -> None:
    made = [await register(own_wire, f"{model}{n}", GOOD) for n in range(3)]
    await own_server.restart()
    for one in made:
        assert (await checked(own_wire, one.name)).state == READY
    jobs = await own_wire.call(job_pb2.ListJobsRequest(), job_pb2.ListJobsResponse)
    assert len(jobs.jobs) == 3
