"""Deployments over the wire: made, changed, rolled out, rolled back, taken away."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
from command_line import CommandLine
from server_process import HatobaServer, running_server
from wire import Wire

from hatoba.v1 import deployment_pb2, model_pb2

from .conftest import (
    Deployment,
    FakeRouter,
    create,
    get,
    prepare,
    refusal,
    router,
    script,
    settled,
    until,
    update,
    wanted,
)


def shares(one: Deployment) -> dict[int, int]:
    """Shares of traffic by revision."""
    return {status.revision: status.weight for status in one.revisions}


def is_paused(one: Deployment) -> bool:
    """Its roll-out waits for somebody."""
    return one.state == deployment_pb2.DEPLOYMENT_STATE_PAUSED


async def test_a_deployment_becomes_ready_with_its_defaults_said(wire: Wire, name: str) -> None:
    made = await create(wire, name, wanted(replicas=2))
    assert made.state == deployment_pb2.DEPLOYMENT_STATE_PROGRESSING
    assert made.spec.limits.max_queue == 64
    assert made.spec.strategy.ready_deadline.seconds == 300
    ready = await settled(wire, name)
    assert ready.state == deployment_pb2.DEPLOYMENT_STATE_READY
    assert [(one.revision, one.ready, one.weight) for one in ready.revisions] == [(1, 2, 100)]
    assert ready.current_revision == 1
    assert len(ready.replicas) == 2
    assert all(one.name.startswith(f"r-{made.uid.replace('-', '')}-1-") for one in ready.replicas)


async def test_the_same_request_makes_one_deployment(wire: Wire, name: str) -> None:
    first = await create(wire, name, request_id="one-and-the-same")
    again = await create(wire, name, request_id="one-and-the-same")
    assert first.uid == again.uid
    other = deployment_pb2.CreateDeploymentRequest(
        deployment=name, spec=wanted("digits:2"), request_id="one-and-the-same"
    )
    assert (await refusal(wire, other)).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_an_update_is_one_rollout_of_one_revision(wire: Wire, name: str) -> None:
    await create(wire, name, wanted(replicas=2))
    before = await settled(wire, name)
    await update(wire, name, ["model"], wanted("digits:2"), etag=before.etag)
    after = await settled(wire, name, 2)
    assert after.rollout.from_revision == 1
    assert [(one.revision, one.ready) for one in after.revisions if one.wanted] == [(2, 2)]
    request = deployment_pb2.ListRevisionsRequest(deployment=name, page_size=1)
    page = await wire.once(request, deployment_pb2.ListRevisionsResponse)
    assert [(one.revision, one.proven) for one in page.revisions] == [(2, True)]
    request.page_token = page.next_page_token
    page = await wire.once(request, deployment_pb2.ListRevisionsResponse)
    assert [one.model_version for one in page.revisions] == [
        "projects/default/models/digits/versions/1"
    ]


async def test_scale_and_capture_make_no_revision(wire: Wire, name: str) -> None:
    await create(wire, name)
    await settled(wire, name)
    spec = wanted(replicas=3)
    spec.capture.dataset, spec.capture.rate = "seen", 0.5
    await update(wire, name, ["replicas", "capture"], spec)
    scaled = await until(wire, name, lambda one: sum(status.ready for status in one.revisions) == 3)
    assert scaled.rollout.number == 1
    assert scaled.spec.capture.rate == 0.5


async def test_a_canary_waits_at_a_step_without_end_and_takes_traffic_by_hand(
    wire: Wire, name: str
) -> None:
    await create(wire, name, wanted(replicas=4))
    await settled(wire, name)
    spec = wanted("digits:2")
    spec.strategy.steps.add(percent=25)
    await update(wire, name, ["model", "strategy"], spec)
    paused = await until(wire, name, is_paused)
    assert {one.revision: (one.wanted, one.weight) for one in paused.revisions} == {
        1: (4, 75),
        2: (1, 25),
    }
    traffic = deployment_pb2.SetTrafficRequest(name=name, weights={1: 50, 2: 50})
    await wire.once(traffic, Deployment)
    await until(wire, name, lambda one: shares(one) == {1: 50, 2: 50})
    resume = deployment_pb2.ResumeRolloutRequest(name=name)
    assert "set by hand" in (await refusal(wire, resume)).details()
    await wire.once(deployment_pb2.PromoteRolloutRequest(name=name), Deployment)
    after = await settled(wire, name, 2)
    (new,) = [one for one in after.revisions if one.wanted]
    assert (new.revision, new.ready, new.weight) == (2, 4, 100)


async def test_a_revision_that_is_never_ready_is_rolled_back_and_old_replicas_stay(
    wire: Wire, name: str
) -> None:
    await create(wire, name, wanted(replicas=2))
    before = await settled(wire, name)
    spec = wanted(env=script(never_ready=True))
    spec.strategy.ready_deadline.FromMilliseconds(600)
    await update(wire, name, ["env", "strategy"], spec)
    after = await settled(wire, name, 2)
    assert after.rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLED_BACK
    assert "had 0 of 2 replicas ready after 0.6 s" in after.rollout.cause.message
    assert [one.name for one in after.replicas] == [one.name for one in before.replicas]
    assert shares(after) == {1: 100}


async def test_a_revision_that_crashes_is_rolled_back_with_its_last_lines(
    wire: Wire, name: str
) -> None:
    await create(wire, name, wanted(replicas=2))
    await settled(wire, name)
    spec = wanted(env=script(crash_after=0.05, crashes=9, restarts_in=0.05))
    spec.strategy.bake.FromSeconds(30)
    await update(wire, name, ["env", "strategy"], spec)
    after = await settled(wire, name, 2)
    assert after.rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLED_BACK
    assert list(after.rollout.cause.last_log_lines) == ["crashed by its script"]
    request = deployment_pb2.ListDeploymentEventsRequest(deployment=name, page_size=1000)
    page = await wire.once(request, deployment_pb2.ListDeploymentEventsResponse)
    seqs = [one.seq for one in page.events]
    assert seqs == list(range(len(seqs), 0, -1))
    assert {"create", "rollout", "ready", "rollback", "rolled back", "replica"} <= {
        one.kind for one in page.events
    }


async def test_a_first_revision_that_fails_is_given_up_and_another_can_follow(
    wire: Wire, name: str
) -> None:
    spec = wanted(env=script(never_ready=True))
    spec.strategy.ready_deadline.FromMilliseconds(300)
    await create(wire, name, spec)
    failed = await settled(wire, name)
    assert failed.state == deployment_pb2.DEPLOYMENT_STATE_FAILED
    assert failed.cause.message
    await update(wire, name, ["env"], wanted())
    assert (await settled(wire, name, 2)).state == deployment_pb2.DEPLOYMENT_STATE_READY


async def test_an_alias_that_moves_is_one_rollout_until_a_rollback_by_hand(
    wire: Wire, name: str
) -> None:
    await create(wire, name, wanted("digits@moving"))
    assert (await settled(wire, name)).following
    move = model_pb2.SetAliasRequest(model="digits", alias="moving", version=2)
    await wire.once(move, model_pb2.SetAliasResponse)
    after = await settled(wire, name, 2)
    assert after.revisions[0].model_version.endswith("/versions/2")
    request = deployment_pb2.ListRevisionsRequest(deployment=name)
    page = await wire.once(request, deployment_pb2.ListRevisionsResponse)
    assert page.revisions[0].created_by == "alias digits@moving"
    back = deployment_pb2.RollBackDeploymentRequest(name=name, reason="it was worse")
    assert not (await wire.once(back, Deployment)).following
    await settled(wire, name, 3)
    move.version = 3
    await wire.once(move, model_pb2.SetAliasResponse)
    assert (await get(wire, name)).rollout.number == 3
    remove = model_pb2.DeleteAliasRequest(model="digits", alias="moving")
    assert f"deployments/{name}" in (await refusal(wire, remove, model_pb2.Model)).details()


async def test_what_is_deployed_cannot_be_removed_and_what_was_can(wire: Wire, name: str) -> None:
    await create(wire, name, wanted("digits:4"))
    await settled(wire, name)
    request = model_pb2.DeleteModelVersionRequest(name="digits:4")
    refused = await refusal(wire, request, model_pb2.ModelVersion)
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"deployments/{name}" in refused.details()


async def test_a_deployment_that_is_deleted_is_gone_in_the_end(wire: Wire, name: str) -> None:
    await create(wire, name)
    await settled(wire, name)
    request = deployment_pb2.DeleteDeploymentRequest(name=name)
    assert (await wire.once(request, Deployment)).state == deployment_pb2.DEPLOYMENT_STATE_DELETING
    watch = deployment_pb2.WatchDeploymentRequest(name=name, follow=True)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in wire.stream(watch, Deployment):
            pass
    missing = deployment_pb2.GetDeploymentRequest(name=name)
    assert (await refusal(wire, missing)).code() is grpc.StatusCode.NOT_FOUND
    await create(wire, name)


async def test_a_watch_without_follow_ends_when_it_is_settled(wire: Wire, name: str) -> None:
    await create(wire, name, wanted(env=script(starts_in=0.2)))
    request = deployment_pb2.WatchDeploymentRequest(name=name)
    seen = [one async for one in wire.stream(request, Deployment)]
    assert seen[0].state == deployment_pb2.DEPLOYMENT_STATE_PROGRESSING
    assert seen[-1].state == deployment_pb2.DEPLOYMENT_STATE_READY


async def test_two_who_change_one_deployment_at_once_do_not_overwrite_each_other(
    wire: Wire, name: str
) -> None:
    made = await create(wire, name)
    await settled(wire, name)
    request = deployment_pb2.UpdateDeploymentRequest(
        name=name, spec=wanted("digits:2"), etag="stale"
    )
    request.update_mask.paths.append("model")
    assert (await refusal(wire, request)).code() is grpc.StatusCode.ABORTED
    both = [update(wire, name, ["replicas"], wanted(replicas=n), made.etag) for n in (2, 3)]
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(isinstance(one, grpc.aio.AioRpcError) for one in answers) == [False, True]


async def test_a_rollout_goes_on_where_it_was_after_kill_9(tmp_path: Path, name: str) -> None:
    await prepare(tmp_path / "data")
    async with running_server(tmp_path / "data", worker=False) as server, Wire(server) as wire:
        await create(wire, name, wanted(replicas=2))
        await settled(wire, name)
        spec = wanted("digits:2")
        spec.strategy.steps.add(percent=50)
        await update(wire, name, ["model", "strategy"], spec)
        await until(wire, name, is_paused)
        async with router(wire, server, url="http://127.0.0.1:1") as one:
            await one.until(lambda: len(one.replicas(name)) == 3)
            last, had = one.cursor, one.replicas(name)
        await server.restart()
        async with router(wire, server, url="http://127.0.0.1:1") as one:
            assert one.cursors[0] > last
            assert one.replicas(name) == had, "nothing that serves is taken out by a restart"
            again = await get(wire, name)
            assert again.state == deployment_pb2.DEPLOYMENT_STATE_PAUSED
            await wire.once(deployment_pb2.ResumeRolloutRequest(name=name), Deployment)
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(_read_on(one), name="router")
                after = await settled(wire, name, 2)
                reading.cancel()
        assert [(s.revision, s.ready) for s in after.revisions] == [(2, 2)]


async def _read_on(one: FakeRouter) -> None:
    while True:
        await one.read()


async def test_the_command_line_follows_a_rollout_to_its_end(
    server: HatobaServer, name: str, tmp_path: Path
) -> None:
    hatoba = CommandLine(server, tmp_path)
    made = await hatoba("deploy", "digits:1", "--name", name, "--replicas", "2", "--bake", "100ms")
    assert made.code == 0, made.err
    assert f"{name} is READY" in made.err
    assert "digits:1 2/2 ready 100%" in made.err
    env = f"MOCK_REPLICA={script(never_ready=True)['MOCK_REPLICA']}"
    failed = await hatoba(
        "deploy", "digits:2", "--name", name, "--env", env, "--ready-deadline", "500ms"
    )
    assert failed.code == 24, failed.err
    assert "is ROLLED_BACK" in failed.err
    assert "had 0 of 2 replicas ready after 0.5 s" in failed.err
    shown = await hatoba("deployments", "get", name)
    assert "READY" in shown.out
    assert "1 -> 2, ROLLED_BACK" in shown.out
