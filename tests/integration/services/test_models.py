"""ModelService over the wire: versions that commits make, aliases and who moves them, lineage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from server_process import HatobaServer
from trees import put_tree
from wire import Wire

from hatoba.v1 import (
    admin_pb2,
    common_pb2,
    dataset_pb2,
    deployment_pb2,
    job_pb2,
    model_pb2,
    runner_pb2,
    worker_pb2,
)

from .conftest import (
    Host,
    cancel,
    commit_of,
    connected,
    fresh,
    job_on,
    refused,
    spec,
    state,
    submit,
    token_of,
)

READY = model_pb2.MODEL_STATE_READY
MISSING = "sha256:" + "0" * 64
FILES = {"weights.bin": b"\x01" * 100}


@pytest.fixture
def model() -> str:
    """A model that no other test uses."""
    return fresh("m")


@pytest.fixture
async def tree(wire: Wire) -> common_pb2.ManifestRef:
    """The stored files of a model."""
    return await put_tree(wire, FILES)


@pytest.fixture
async def second(server: HatobaServer, wire: Wire) -> AsyncIterator[Wire]:
    """Calls of another principal than the fixture `wire`'s."""
    made = await token_of(wire, admin_pb2.ROLE_USER, "bea")
    async with Wire(server, token=made.secret) as one:
        yield one


def logged(model: str, tree: common_pb2.ManifestRef, **fields: Any) -> runner_pb2.LoggedModel:
    told = runner_pb2.LoggedModel(model=model, manifest=tree, **fields)
    told.serving.handler = "serve:Model"
    told.serving.example.data = b"[1]"
    told.serving.example.media_type = "application/json"
    return told


async def version(wire: Wire, name: str) -> model_pb2.ModelVersion:
    request = model_pb2.GetModelVersionRequest(name=name)
    return await wire.once(request, model_pb2.ModelVersion)


async def versions(wire: Wire, model: str) -> list[model_pb2.ModelVersion]:
    request = model_pb2.ListModelVersionsRequest(model=model)
    return list((await wire.once(request, model_pb2.ListModelVersionsResponse)).versions)


async def register(
    wire: Wire, model: str, tree: common_pb2.ManifestRef, **fields: Any
) -> model_pb2.ModelVersion:
    request = model_pb2.RegisterModelRequest(model=model, manifest=tree, **fields)
    return await wire.once(request, model_pb2.ModelVersion)


async def set_alias(
    wire: Wire, model: str, version: int, alias: str = "production", **fields: Any
) -> model_pb2.SetAliasResponse:
    request = model_pb2.SetAliasRequest(model=model, alias=alias, version=version, **fields)
    return await wire.once(request, model_pb2.SetAliasResponse)


async def protect(wire: Wire, model: str, *aliases: str, etag: str = "") -> model_pb2.Model:
    request = model_pb2.UpdateModelRequest(name=model, protected_aliases=aliases, etag=etag)
    return await wire.once(request, model_pb2.Model)


async def decide(wire: Wire, move: str, approve: bool) -> model_pb2.AliasMove:
    request = model_pb2.DecideAliasMoveRequest(name=move, approve=approve, comment="looked at")
    return await wire.once(request, model_pb2.AliasMove)


async def get_model(wire: Wire, name: str) -> model_pb2.Model:
    return await wire.once(model_pb2.GetModelRequest(name=name), model_pb2.Model)


def points_to(model: model_pb2.Model, alias: str = "production") -> int:
    return next((one.version for one in model.aliases if one.alias == alias), 0)


# -- versions that commits make --------------------------------------------------------------------


@pytest.fixture
async def launch(wire: Wire, host: Host) -> worker_pb2.LaunchAttempt:
    """An attempt that runs on the host."""
    await submit(wire, job_on(host.name))
    launch = await host.launched()
    await host.started(launch)
    return launch


async def test_a_commit_makes_versions_with_where_they_come_from(
    wire: Wire, host: Host, model: str, tree: common_pb2.ManifestRef
) -> None:
    dataset = await wire.once(
        dataset_pb2.CreateDatasetVersionRequest(dataset=fresh("d"), manifest=tree),
        dataset_pb2.DatasetVersion,
    )
    code = await put_tree(wire, {"serve.py": b"class Model: ...\n"})
    wanted = job_on(host.name, "train")
    wanted.code.CopyFrom(code)
    wanted.source["commit"] = "c" * 40
    wanted.inputs.add(name="data", source=dataset.name)
    wanted.params["lr"].number_value = 0.1
    wanted.environment.python = "3.11"
    job = await submit(wire, wanted)
    launch = await host.launched()
    await host.started(launch)
    report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence, report=1)
    for step, value in ((1, 0.5), (3, 0.9), (2, 0.7)):
        report.samples.add(key="accuracy", step=step, value=value)
    await wire.once(report, runner_pb2.ReportMetricsResponse)
    assert (await host.commit(launch, models=[logged(model, tree, description="first")])).accepted
    made = await version(wire, model)
    assert (made.version, made.state) == (1, READY)
    assert (made.job, made.attempt, made.trace_id) == (job.name, 1, job.trace_id)
    assert list(made.datasets) == [dataset.name]
    assert (dict(made.metrics), made.params["lr"].number_value) == ({"accuracy": 0.9}, 0.1)
    assert (made.git_commit, made.description) == ("c" * 40, "first")
    assert (made.serving.code.digest, made.serving.environment.python) == (code.digest, "3.11")
    assert made.manifest.total_bytes == tree.total_bytes
    ended = await wire.ended(job.name)
    assert list(ended.models) == [made.name]


async def test_metrics_that_are_given_are_not_the_jobs(
    host: Host, wire: Wire, launch: worker_pb2.LaunchAttempt, model: str, tree: Any
) -> None:
    told = logged(model, tree, metrics={"f1": 0.8}, labels={"team": "vision"})
    await host.commit(launch, models=[told, told])
    first, newest = reversed(await versions(wire, model))
    assert (first.version, newest.version) == (1, 2)
    assert dict(newest.metrics) == {"f1": 0.8}
    assert dict(newest.labels) == {"team": "vision"}
    # No code of the job's: the handler is looked for in the model's own tree.
    assert newest.serving.code.digest == tree.digest


async def test_a_parent_is_a_version_that_there_is(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt, model: str, tree: Any
) -> None:
    parent = await register(wire, model, tree)
    await host.commit(launch, models=[logged(model, tree, parent=f"{model}:1")])
    assert (await version(wire, f"{model}:2")).parent == parent.name


@pytest.mark.parametrize("same_nonce", [True, False], ids=["same runner", "another runner"])
async def test_two_commits_at_once_are_one_version_and_one_outcome(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any, same_nonce: bool
) -> None:
    other = "n" * 16 if same_nonce else "x" * 16
    told = logged(model, tree)
    replies = await asyncio.gather(
        *(host.commit(launch, models=[told]) for _ in range(5)),
        *(host.commit(launch, other, models=[told]) for _ in range(5)),
    )
    assert [reply.accepted for reply in replies] == [True] * 5 + [same_nonce] * 5
    assert len(await versions(wire, model)) == 1
    assert state(await wire.ended(launch.job)) == "SUCCEEDED"


async def test_a_good_and_a_bad_commit_at_once_are_one_outcome(
    wire: Wire, host: Host, model: str, tree: Any
) -> None:
    wanted = job_on(host.name)
    wanted.retries.infrastructure = 0
    await submit(wire, wanted)
    launch = await host.launched()
    await host.started(launch)
    await asyncio.gather(
        host.commit(launch, models=[logged(model, tree)]),
        host.commit(launch, kind=runner_pb2.EXIT_KIND_LOST),
        host.commit(launch, models=[logged(model, tree)], exit_code=1),
    )
    ended = await wire.ended(launch.job)
    made = await refused(get_model(wire, model)) if state(ended) != "SUCCEEDED" else None
    assert made is None or made.code == grpc.StatusCode.NOT_FOUND
    assert len(ended.models) == (1 if state(ended) == "SUCCEEDED" else 0)
    assert (await wire.attempts(launch.job))[0].state in (
        common_pb2.ATTEMPT_STATE_SUCCEEDED,
        common_pb2.ATTEMPT_STATE_FAILED,
        common_pb2.ATTEMPT_STATE_LOST,
    )


async def test_a_loss_that_is_told_after_the_commit_is_history(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    assert (await host.commit(launch, models=[logged(model, tree)], gone=False)).accepted
    assert not (await host.commit(launch, "x" * 16, kind=runner_pb2.EXIT_KIND_LOST)).accepted
    gone = worker_pb2.AttemptGone(attempt=launch.attempt, fence=launch.fence)
    await host.say(worker_pb2.WorkerItem(gone=gone))
    ended = await wire.ended(launch.job)
    assert (state(ended), len(ended.models)) == ("SUCCEEDED", 1)
    assert [one.version for one in await versions(wire, model)] == [1]


async def test_what_succeeded_before_the_cancel_reached_it_is_one_version(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    await cancel(wire, launch.job)
    assert (await host.commit(launch, models=[logged(model, tree)])).accepted
    ended = await wire.ended(launch.job)
    assert (state(ended), len(ended.models)) == ("SUCCEEDED", 1)


async def test_a_commit_after_the_cancelled_end_makes_nothing(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    await cancel(wire, launch.job)
    stopped: dict[str, Any] = {"kind": runner_pb2.EXIT_KIND_STOPPED}
    assert (await host.commit(launch, models=[logged(model, tree)], **stopped)).accepted
    assert state(await wire.ended(launch.job)) == "CANCELLED"
    await host.commit(launch, models=[logged(model, tree)])
    refusal = await refused(get_model(wire, model))
    assert refusal.code == grpc.StatusCode.NOT_FOUND


async def test_a_failed_command_makes_no_versions(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    await host.commit(launch, models=[logged(model, tree)], exit_code=3)
    ended = await wire.ended(launch.job)
    assert (ended.cause.exit_code, list(ended.models)) == (3, [])
    assert (await refused(get_model(wire, model))).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"manifest": common_pb2.ManifestRef(digest=MISSING)}, "its tree"),
        ({"parent": "nobody:3"}, "its parent"),
        ({"code": MISSING}, "the code that serves it"),
    ],
    ids=["files", "parent", "code"],
)
async def test_a_model_that_cannot_be_registered_fails_its_attempt(
    wire: Wire,
    host: Host,
    launch: Any,
    model: str,
    tree: Any,
    change: dict[str, Any],
    words: str,
) -> None:
    good, bad = logged(model, tree), logged(model, tree)
    bad.serving.code.digest = change.pop("code", "")
    bad.MergeFrom(runner_pb2.LoggedModel(**change))
    commit: dict[str, Any] = {"models": [good, bad], "last_log_lines": ["done"]}
    assert (await host.commit(launch, **commit)).accepted
    ended = await wire.ended(launch.job)
    assert (state(ended), ended.cause.code) == ("FAILED", common_pb2.CAUSE_CODE_MODEL_REFUSED)
    assert ended.cause.origin == common_pb2.ORIGIN_USER
    assert words in ended.cause.message
    assert list(ended.cause.last_log_lines) == ["done"]
    assert len(await wire.attempts(launch.job)) == 1
    assert (await refused(get_model(wire, model))).code == grpc.StatusCode.NOT_FOUND


async def test_a_commit_that_is_said_again_after_a_crash_is_one_version(
    own_server: HatobaServer, own_wire: Wire, model: str
) -> None:
    tree = await put_tree(own_wire, FILES)
    async with connected(own_wire, "here") as host:
        await submit(own_wire, spec(backend="hosts"))
        launch = await host.launched()
        await host.started(launch)
        assert (await host.commit(launch, models=[logged(model, tree)])).accepted
    await own_server.restart()
    request = commit_of(launch, models=[logged(model, tree)])
    reply = await own_wire.call(request, runner_pb2.CommitAttemptResponse)
    assert reply.accepted
    assert [one.version for one in await versions(own_wire, model)] == [1]


async def test_a_commit_over_a_hosts_stream_registers_too(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    commit = commit_of(launch, models=[logged(model, tree)])
    await host.say(worker_pb2.WorkerItem(commit=commit), worker_pb2.WorkerItem(commit=commit))
    assert (await host.hears("committed")).accepted
    assert (await host.hears("committed")).accepted
    assert [one.version for one in await versions(wire, model)] == [1]


# -- registering -----------------------------------------------------------------------------------


async def test_a_tree_without_a_handler_is_ready_at_once(wire: Wire, model: str, tree: Any) -> None:
    fields: dict[str, Any] = {"metrics": {"f1": 0.5}, "labels": {"a": "b"}, "description": "raw"}
    made = await register(wire, model, tree, **fields)
    assert (made.version, made.state, made.check_job) == (1, READY, "")
    assert (dict(made.metrics), dict(made.labels)) == ({"f1": 0.5}, {"a": "b"})
    assert made.manifest.files == 1
    assert (await get_model(wire, model)).latest == 1


async def test_registering_again_with_the_same_id_is_one_version(
    wire: Wire, model: str, tree: Any
) -> None:
    made = await asyncio.gather(
        *(register(wire, model, tree, request_id=f"r-{model}") for _ in range(5))
    )
    assert {one.version for one in made} == {1}
    other = register(wire, model, tree, request_id=f"r-{model}", description="other")
    assert (await refused(other)).reason == "IDEMPOTENCY_MISMATCH"


async def test_versions_registered_at_once_have_numbers_of_their_own(
    wire: Wire, model: str, tree: Any
) -> None:
    made = await asyncio.gather(*(register(wire, model, tree) for _ in range(20)))
    assert sorted(one.version for one in made) == list(range(1, 21))


async def test_what_a_job_left_can_be_registered_as_its_own(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence, report=1)
    report.samples.add(key="loss", step=1, value=0.25)
    await wire.once(report, runner_pb2.ReportMetricsResponse)
    await host.commit(launch, outputs=tree)
    name = launch.job.rpartition("/")[2]
    made = await register(wire, model, tree, job=f"jobs/{name}")
    assert (made.job, made.attempt, dict(made.metrics)) == (launch.job, 1, {"loss": 0.25})
    job = await wire.once(job_pb2.GetJobRequest(name=launch.job), job_pb2.Job)
    assert list(job.models) == [made.name]


async def test_references_of_every_form_name_a_version(wire: Wire, model: str, tree: Any) -> None:
    first = await register(wire, model, tree)
    await register(wire, model, tree)
    await set_alias(wire, model, 1)
    for text in (f"{model}:1", f"models/{model}:1", f"{model}@production", first.name):
        assert (await version(wire, text)).name == first.name
    assert (await version(wire, model)).version == 2
    assert list((await version(wire, f"{model}:1")).aliases) == ["production"]


async def test_lists_have_pages(wire: Wire, model: str, tree: Any, project: str) -> None:
    names = [f"{model}{letter}" for letter in "abc"]
    for name in names:
        await register(wire, name, tree, project=project)
    request = model_pb2.ListModelsRequest(project=project, page_size=2)
    first = await wire.once(request, model_pb2.ListModelsResponse)
    request.page_token = first.next_page_token
    last = await wire.once(request, model_pb2.ListModelsResponse)
    found = [one.name.rpartition("/")[2] for one in [*first.models, *last.models]]
    assert (found, last.next_page_token) == (names, "")
    for _ in range(2):
        await register(wire, names[0], tree, project=project)
    asked = model_pb2.ListModelVersionsRequest(project=project, model=names[0], page_size=2)
    page = await wire.once(asked, model_pb2.ListModelVersionsResponse)
    assert [one.version for one in page.versions] == [3, 2]
    asked.page_token = page.next_page_token
    page = await wire.once(asked, model_pb2.ListModelVersionsResponse)
    assert ([one.version for one in page.versions], page.next_page_token) == ([1], "")


# -- aliases ---------------------------------------------------------------------------------------


async def ready(wire: Wire, model: str, tree: Any, count: int = 3) -> None:
    for _ in range(count):
        await register(wire, model, tree)


async def test_an_alias_moves_from_where_it_points(wire: Wire, model: str, tree: Any) -> None:
    await ready(wire, model, tree)
    made = await set_alias(wire, model, 1, expected=0, reason="best")
    assert made.move.state == model_pb2.ALIAS_MOVE_STATE_APPLIED
    assert (points_to(made.model), made.move.from_version, made.move.to_version) == (1, 0, 1)
    moved = await set_alias(wire, model, 2, expected=1)
    assert points_to(moved.model) == 2
    assert moved.model.etag != made.model.etag
    refusal = await refused(set_alias(wire, model, 3, expected=1))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ALIAS_MOVED")
    assert "points to version 2" in refusal.message


async def test_to_where_it_points_already_nothing_changes(
    wire: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree)
    first = await set_alias(wire, model, 1)
    again = await set_alias(wire, model, 1)
    assert again == first


async def test_moved_many_times_at_once_one_wins(wire: Wire, model: str, tree: Any) -> None:
    await ready(wire, model, tree, 5)
    await set_alias(wire, model, 1)
    moves = [set_alias(wire, model, number, expected=1) for number in (2, 3, 4, 5)]
    found = await asyncio.gather(*moves, return_exceptions=True)
    won = [one for one in found if isinstance(one, model_pb2.SetAliasResponse)]
    lost = [one for one in found if isinstance(one, grpc.aio.AioRpcError)]
    assert (len(won), len(lost)) == (1, 3)
    now = points_to(await get_model(wire, model))
    assert won[0].move.to_version == now
    assert {error.code() for error in lost} == {grpc.StatusCode.ABORTED}
    assert all(f"points to version {now}" in (error.details() or "") for error in lost)


async def test_a_repeat_with_the_same_id_says_what_it_did(
    wire: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree)
    asked: dict[str, Any] = {"expected": 0, "request_id": f"a-{model}"}
    first = await set_alias(wire, model, 1, **asked)
    await set_alias(wire, model, 2)
    again = await set_alias(wire, model, 1, **asked)
    assert again.move == first.move
    assert points_to(again.model) == 2


async def test_a_protected_alias_waits_for_a_second_principal(
    wire: Wire, second: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree)
    await set_alias(wire, model, 1)
    assert list((await protect(wire, model, "production")).protected_aliases) == ["production"]
    asked = await set_alias(wire, model, 2, expected=1, reason="better")
    assert asked.move.state == model_pb2.ALIAS_MOVE_STATE_PENDING
    assert points_to(asked.model) == 1
    assert asked.model.aliases[0].protected
    assert (await set_alias(wire, model, 2)).move.name == asked.move.name
    own = await refused(decide(wire, asked.move.name, True))
    assert (own.code, own.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SECOND_PRINCIPAL")
    done = await decide(second, asked.move.name, True)
    assert (done.state, done.decided_by, done.comment) == (
        model_pb2.ALIAS_MOVE_STATE_APPLIED,
        "bea",
        "looked at",
    )
    assert points_to(await get_model(wire, model)) == 2
    assert await decide(second, asked.move.name, True) == done
    other = await refused(decide(second, asked.move.name, False))
    assert other.code == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_rejected_move_moves_nothing(
    wire: Wire, second: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree)
    await protect(wire, model, "production")
    asked = await set_alias(wire, model, 1)
    done = await decide(second, asked.move.name, False)
    assert done.state == model_pb2.ALIAS_MOVE_STATE_REJECTED
    assert points_to(await get_model(wire, model)) == 0
    moves = await wire.once(
        model_pb2.ListAliasMovesRequest(model=model, pending_only=True),
        model_pb2.ListAliasMovesResponse,
    )
    assert list(moves.moves) == []


async def test_what_waits_is_superseded_when_the_alias_moves_otherwise(
    wire: Wire, second: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree)
    await protect(wire, model, "production")
    first = await set_alias(wire, model, 1)
    other = await set_alias(wire, model, 2)
    await decide(second, other.move.name, True)
    refusal = await refused(decide(second, first.move.name, True))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ALIAS_MOVED")
    moves = await wire.once(
        model_pb2.ListAliasMovesRequest(model=model), model_pb2.ListAliasMovesResponse
    )
    assert [one.state for one in moves.moves] == [
        model_pb2.ALIAS_MOVE_STATE_APPLIED,
        model_pb2.ALIAS_MOVE_STATE_SUPERSEDED,
    ]


async def test_an_alias_is_taken_away(wire: Wire, second: Wire, model: str, tree: Any) -> None:
    await ready(wire, model, tree)
    await set_alias(wire, model, 1, "old")
    request = model_pb2.DeleteAliasRequest(model=model, alias="old", expected=2)
    assert (await refused(wire.once(request, model_pb2.Model))).code == grpc.StatusCode.ABORTED
    request.expected = 1
    assert points_to(await wire.once(request, model_pb2.Model), "old") == 0
    nothing = model_pb2.DeleteAliasRequest(model=model, alias="never")
    assert (await refused(wire.once(nothing, model_pb2.Model))).code == grpc.StatusCode.NOT_FOUND
    await set_alias(wire, model, 1, "safe")
    await protect(wire, model, "safe")
    kept = model_pb2.DeleteAliasRequest(model=model, alias="safe")
    assert points_to(await wire.once(kept, model_pb2.Model), "safe") == 1
    waiting = model_pb2.ListAliasMovesRequest(model=model, pending_only=True)
    (move,) = (await wire.once(waiting, model_pb2.ListAliasMovesResponse)).moves
    assert (move.from_version, move.to_version) == (1, 0)
    await decide(second, move.name, True)
    assert points_to(await get_model(wire, model), "safe") == 0


async def test_protection_has_an_etag(wire: Wire, model: str, tree: Any) -> None:
    await ready(wire, model, tree, 1)
    before = await get_model(wire, model)
    await protect(wire, model, "a", "b", etag=before.etag)
    refusal = await refused(protect(wire, model, etag=before.etag))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "STALE_ETAG")


# -- removing --------------------------------------------------------------------------------------


async def delete(wire: Wire, name: str) -> model_pb2.ModelVersion:
    request = model_pb2.DeleteModelVersionRequest(name=name)
    return await wire.once(request, model_pb2.ModelVersion)


async def test_what_is_used_stays_and_its_users_are_named(
    wire: Wire, host: Host, model: str, tree: Any
) -> None:
    await ready(wire, model, tree, 1)
    await register(wire, model, tree, parent=f"{model}:1")
    await set_alias(wire, model, 1)
    await protect(wire, model, "next")
    await set_alias(wire, model, 1, "next")
    reader = job_on(host.name, "reader")
    reader.hold = True
    reader.inputs.add(name="model", source=f"models/{model}:1")
    job = await submit(wire, reader)
    assert job.spec.inputs[0].manifest.digest == tree.digest
    refusal = await refused(delete(wire, f"{model}:1"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IN_USE")
    name = job.name.rpartition("/")[2]
    for user in ("alias production", "of alias next", f"jobs/{name}", f"models/{model}:2"):
        assert user in refusal.message
    await cancel(wire, job.name)
    assert name not in (await refused(delete(wire, f"{model}:1"))).message


async def test_a_number_is_not_given_again(wire: Wire, model: str, tree: Any) -> None:
    await ready(wire, model, tree, 2)
    assert (await delete(wire, f"{model}:2")).version == 2
    assert (await get_model(wire, model)).latest == 1
    assert (await register(wire, model, tree)).version == 3
    assert (await refused(version(wire, f"{model}:2"))).code == grpc.StatusCode.NOT_FOUND


# -- lineage ---------------------------------------------------------------------------------------


async def lineage(wire: Wire, name: str, depth: int = 0) -> model_pb2.Lineage:
    request = model_pb2.GetLineageRequest(name=name, depth=depth)
    return await wire.once(request, model_pb2.Lineage)


def edges(found: model_pb2.Lineage) -> set[tuple[str, str, str]]:
    return {
        (getattr(edge, "from").split("/", 2)[2], edge.relation, edge.to.split("/", 2)[2])
        for edge in found.edges
    }


async def test_lineage_goes_both_ways_from_anything(
    wire: Wire, host: Host, model: str, tree: Any
) -> None:
    data, code = fresh("d"), fresh("c")
    dataset = await wire.once(
        dataset_pb2.CreateDatasetVersionRequest(dataset=data, manifest=tree),
        dataset_pb2.DatasetVersion,
    )
    source = await wire.once(
        dataset_pb2.CreateCodeVersionRequest(code=code, manifest=tree), dataset_pb2.CodeVersion
    )
    wanted = job_on(host.name, "train")
    wanted.inputs.add(name="data", source=f"datasets/{data}")
    wanted.code.CopyFrom(tree)
    wanted.code_version = source.name
    job = await submit(wire, wanted)
    launch = await host.launched()
    await host.started(launch)
    await host.commit(launch, models=[logged(model, tree)])
    await wire.ended(job.name)
    await register(wire, model, tree, parent=f"{model}:1")
    name = job.name.split("/", 2)[2]
    first, child = f"models/{model}/versions/1", f"models/{model}/versions/2"
    whole = {
        (f"datasets/{data}/versions/1", "trained-on", first),
        (f"datasets/{data}/versions/1", "read-by", name),
        (f"code/{code}/versions/1", "code-of", first),
        (f"code/{code}/versions/1", "code-of", name),
        (name, "made-by", first),
        (first, "parent", child),
    }
    assert edges(await lineage(wire, f"{model}:1")) == whole
    assert edges(await lineage(wire, f"datasets/{data}:1")) == {
        edge for edge in whole if not edge[0].startswith("code")
    }
    assert edges(await lineage(wire, f"code/{code}")) == {
        edge for edge in whole if not edge[0].startswith("datasets")
    }
    found = await lineage(wire, f"jobs/{name.partition('/')[2]}")
    assert (found.root, found.truncated) == (job.name, False)
    nodes = {node.name: node for node in found.nodes}
    assert nodes[dataset.name].kind == "dataset"
    assert nodes[job.name].attributes["state"] == "SUCCEEDED"
    assert len(nodes) == len(found.nodes) == 5
    near = await lineage(wire, f"{model}:2", 1)
    assert (edges(near), near.truncated) == ({(first, "parent", child)}, True)


async def capture(wire: Wire, name: str) -> None:
    """Commit a dataset of one captured request of the deployment `name`, and one other item."""
    append = dataset_pb2.AppendDatasetItemsRequest(dataset=name)
    append.items.add(id="a").attributes.update({"label": "3", "deployment": "nobody"})
    facts: dict[str, Any] = {"prediction": {"digit": 3}, "deployment": name, "model": "digits:7"}
    append.items.add(id="b").attributes.update(facts)
    await wire.once(append, dataset_pb2.AppendDatasetItemsResponse)
    await wire.once(dataset_pb2.CommitDatasetRequest(dataset=name), dataset_pb2.DatasetVersion)


async def test_what_serves_a_version_is_in_its_lineage(
    wire: Wire, host: Host, launch: Any, model: str, tree: Any
) -> None:
    await host.commit(launch, models=[logged(model, tree)])
    name = fresh("d")
    request = deployment_pb2.CreateDeploymentRequest(deployment=name)
    request.spec.model, request.spec.backend = f"{model}:1", "mock"
    await wire.once(request, deployment_pb2.Deployment)
    job = launch.job.split("/", 2)[2]
    whole = {
        (job, "made-by", f"models/{model}/versions/1"),
        (f"models/{model}/versions/1", "serves", f"deployments/{name}"),
    }
    for root in (f"{model}:1", launch.job, f"deployments/{name}"):
        found = await lineage(wire, root)
        assert edges(found) == whole
    await capture(wire, name)
    whole.add((f"deployments/{name}", "captured-from", f"datasets/{name}/versions/1"))
    for root in (f"{model}:1", f"deployments/{name}", f"datasets/{name}"):
        found = await lineage(wire, root)
        assert edges(found) == whole
    found = await lineage(wire, f"deployments/{name}")
    (served,) = [node for node in found.nodes if node.kind == "deployment"]
    assert served.attributes["model"] == f"{model}:1"
    await wire.once(deployment_pb2.DeleteDeploymentRequest(name=name), deployment_pb2.Deployment)


async def test_what_was_removed_is_known_by_name(
    wire: Wire, host: Host, model: str, tree: Any
) -> None:
    await ready(wire, model, tree, 1)
    reader = job_on(host.name, "reader")
    reader.hold = True
    reader.inputs.add(name="model", source=f"models/{model}")
    job = await submit(wire, reader)
    await cancel(wire, job.name)
    gone = (await delete(wire, f"{model}:1")).name
    found = await lineage(wire, job.name)
    assert [node.name for node in found.nodes if node.gone] == [gone]


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nobody", grpc.StatusCode.NOT_FOUND, "hatoba models"),
        ("nobody:3", grpc.StatusCode.NOT_FOUND, "hatoba models versions nobody"),
        ("nobody@production", grpc.StatusCode.NOT_FOUND, "points nowhere"),
        ("a:0", grpc.StatusCode.INVALID_ARGUMENT, "they begin at 1"),
        ("a:b", grpc.StatusCode.INVALID_ARGUMENT, "number of a version"),
        ("datasets/a:1", grpc.StatusCode.INVALID_ARGUMENT, "one of models"),
        ("../etc", grpc.StatusCode.INVALID_ARGUMENT, "NAME:NUMBER"),
        ("a@B", grpc.StatusCode.INVALID_ARGUMENT, "alias"),
        ("a" * 257, grpc.StatusCode.INVALID_ARGUMENT, "256"),
    ],
)
async def test_a_bad_reference_is_explained(
    wire: Wire, name: str, code: grpc.StatusCode, words: str
) -> None:
    refusal = await refused(version(wire, name))
    assert refusal.code == code
    assert words in refusal.message


def _registering(tree: Any, **fields: Any) -> model_pb2.RegisterModelRequest:
    return model_pb2.RegisterModelRequest(**{"model": "bad", "manifest": tree, **fields})


def _serving(**fields: Any) -> model_pb2.Serving:
    example = model_pb2.Payload(data=b"[1]", media_type="application/json")
    return model_pb2.Serving(**{"handler": "serve:Model", "example": example, **fields})


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no tree": ({"manifest": None}, "INVALID_ARGUMENT", "manifest"),
    "tree without a digest": ({"manifest": common_pb2.ManifestRef()}, "INVALID_ARGUMENT", "digest"),
    "tree that is not stored": (
        {"manifest": common_pb2.ManifestRef(digest=MISSING)},
        "FAILED_PRECONDITION",
        MISSING,
    ),
    "model in capitals": ({"model": "Bad"}, "INVALID_ARGUMENT", "lower-case"),
    "handler that is none": ({"serving": _serving(handler="serve")}, "INVALID_ARGUMENT", "handler"),
    "handler without an example": (
        {"serving": model_pb2.Serving(handler="serve:Model")},
        "INVALID_ARGUMENT",
        "serving.example",
    ),
    "golden cases without a handler": (
        {"serving": model_pb2.Serving(golden=1)},
        "INVALID_ARGUMENT",
        "serving.golden",
    ),
    "too many golden cases": ({"serving": _serving(golden=65)}, "INVALID_ARGUMENT", "golden"),
    "code that is not stored": (
        {"serving": _serving(code=common_pb2.ManifestRef(digest=MISSING))},
        "FAILED_PRECONDITION",
        "serving.code",
    ),
    "example that is too large": (
        {"serving": _serving(example=model_pb2.Payload(data=b"x" * 262_145))},
        "INVALID_ARGUMENT",
        "262144",
    ),
    "image and python": (
        {"serving": _serving(environment=job_pb2.Environment(image="a", python="3.11"))},
        "INVALID_ARGUMENT",
        "not both",
    ),
    "job that there is not": ({"job": "jobs/nobody-1"}, "NOT_FOUND", "jobs list"),
    "job that is none": ({"job": "datasets/a:1"}, "INVALID_ARGUMENT", "one of jobs"),
    "parent that there is not": ({"parent": "nobody:1"}, "NOT_FOUND", "nobody"),
    "dataset that there is not": ({"datasets": ["nobody:1"]}, "NOT_FOUND", "datasets[0]"),
    "code version that there is not": ({"code_version": "nobody:1"}, "NOT_FOUND", "code_version"),
    "too many metrics": (
        {"metrics": {str(n): 1.0 for n in range(257)}},
        "INVALID_ARGUMENT",
        "metrics",
    ),
    "label that is none": ({"labels": {"a b": "c"}}, "INVALID_ARGUMENT", "labels"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_registered_is_explained(wire: Wire, tree: Any, name: str) -> None:
    fields, code, words = BAD[name]
    request = _registering(tree, **fields)
    refusal = await refused(wire.once(request, model_pb2.ModelVersion))
    assert refusal.code.name == code
    assert words in refusal.message
    assert (await refused(get_model(wire, "bad"))).code == grpc.StatusCode.NOT_FOUND


BAD_CALLS: dict[str, tuple[Any, Any, str, str]] = {
    "alias to a version that there is not": (
        model_pb2.SetAliasRequest(model="kept", alias="a", version=9),
        model_pb2.SetAliasResponse,
        "NOT_FOUND",
        "version 9",
    ),
    "alias of a model that there is not": (
        model_pb2.SetAliasRequest(model="nobody", alias="a", version=1),
        model_pb2.SetAliasResponse,
        "NOT_FOUND",
        "nobody",
    ),
    "alias of a version": (
        model_pb2.SetAliasRequest(model="kept:1", alias="a", version=1),
        model_pb2.SetAliasResponse,
        "INVALID_ARGUMENT",
        "without a version",
    ),
    "alias in capitals": (
        model_pb2.SetAliasRequest(model="kept", alias="A", version=1),
        model_pb2.SetAliasResponse,
        "INVALID_ARGUMENT",
        "lower-case",
    ),
    "alias to nowhere": (
        model_pb2.SetAliasRequest(model="kept", alias="a"),
        model_pb2.SetAliasResponse,
        "INVALID_ARGUMENT",
        "version",
    ),
    "move that is none": (
        model_pb2.DecideAliasMoveRequest(name="moves/1"),
        model_pb2.AliasMove,
        "INVALID_ARGUMENT",
        "moves/NUMBER",
    ),
    "move that there is not": (
        model_pb2.DecideAliasMoveRequest(name="projects/default/models/kept/moves/999999"),
        model_pb2.AliasMove,
        "NOT_FOUND",
        "move 999999",
    ),
    "delete without a number": (
        model_pb2.DeleteModelVersionRequest(name="kept"),
        model_pb2.ModelVersion,
        "INVALID_ARGUMENT",
        "by its number",
    ),
    "delete of what is not there": (
        model_pb2.DeleteModelVersionRequest(name="kept:9"),
        model_pb2.ModelVersion,
        "NOT_FOUND",
        "versions/9",
    ),
    "lineage of nothing": (
        model_pb2.GetLineageRequest(name="datasets/nobody"),
        model_pb2.Lineage,
        "NOT_FOUND",
        "nobody",
    ),
    "lineage of a prediction": (
        model_pb2.GetLineageRequest(name="predictions/" + "a" * 32),
        model_pb2.Lineage,
        "INVALID_ARGUMENT",
        "predictions",
    ),
    "lineage too deep": (
        model_pb2.GetLineageRequest(name="kept:1", depth=101),
        model_pb2.Lineage,
        "INVALID_ARGUMENT",
        "depth",
    ),
    "page of another list": (
        model_pb2.ListModelsRequest(page_token="x"),
        model_pb2.ListModelsResponse,
        "INVALID_ARGUMENT",
        "page_token",
    ),
    "protected twice": (
        model_pb2.UpdateModelRequest(name="kept", protected_aliases=["a", "a"]),
        model_pb2.Model,
        "INVALID_ARGUMENT",
        "protected_aliases",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
async def test_a_bad_call_is_explained_and_changes_nothing(
    wire: Wire, tree: Any, name: str
) -> None:
    await register(wire, "kept", tree, request_id="kept")
    before = await get_model(wire, "kept")
    request, reply, code, words = BAD_CALLS[name]
    refusal = await refused(wire.once(request, reply))
    assert refusal.code.name == code
    assert words in refusal.message
    assert await get_model(wire, "kept") == before


async def test_jobs_read_ready_versions_only(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name)
    wanted.inputs.add(name="model", source="models/nobody@production")
    refusal = await refused(submit(wire, wanted))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["spec.inputs[0].source"],
    )


async def test_who_only_looks_moves_nothing(
    server: HatobaServer, wire: Wire, model: str, tree: Any
) -> None:
    await ready(wire, model, tree, 1)
    made = await token_of(wire, admin_pb2.ROLE_VIEWER, "vera")
    async with Wire(server, token=made.secret) as viewer:
        assert (await version(viewer, model)).version == 1
        refusal = await refused(set_alias(viewer, model, 1))
    assert refusal.code == grpc.StatusCode.PERMISSION_DENIED
