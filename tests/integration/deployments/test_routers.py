"""What routers are told and tell: the table, who may ask, predictions, captured inputs."""

from __future__ import annotations

import hashlib
import uuid

import grpc
from server_process import HatobaServer
from wire import Wire

from hatoba.v1 import (
    admin_pb2,
    dataset_pb2,
    deployment_pb2,
    deployment_pb2_grpc,
    job_pb2,
)

from .conftest import (
    COMMIT,
    Deployment,
    create,
    get,
    refusal,
    router,
    settled,
    until,
    update,
    wanted,
)

Report = deployment_pb2.ReportPredictionsRequest
Reported = deployment_pb2.ReportPredictionsResponse
# The first may be over before a watch tells of it: the old replicas are all still there.
GOES_BACK = (deployment_pb2.ROLLOUT_STATE_ROLLING_BACK, deployment_pb2.ROLLOUT_STATE_ROLLED_BACK)


def full(name: str) -> str:
    """A deployment's resource name."""
    return f"projects/default/deployments/{name}"


async def test_a_router_gets_the_table_then_changes_with_growing_cursors(
    wire: Wire, server: HatobaServer, name: str
) -> None:
    async with router(wire, server) as one:
        await create(wire, name, wanted(replicas=2))
        await one.until(lambda: len(one.replicas(name)) == 2)
        assert one.cursors == sorted(set(one.cursors))
        route = one.routes[full(name)]
        assert [(t.revision, t.weight, t.model_version) for t in route.targets] == [
            (1, 100, "projects/default/models/digits/versions/1")
        ]
        assert route.limits.max_body_bytes == 16 << 20
        assert f"{one.url}/{name}" in (await get(wire, name)).urls
    async with router(wire, server) as two:
        assert len(two.replicas(name)) == 2, "the first message is the whole table"


async def test_an_old_replica_ends_only_after_routers_act_without_it(
    own_wire: Wire, own_server: HatobaServer, name: str
) -> None:
    wire, server = own_wire, own_server
    await create(wire, name)
    before = await settled(wire, name)
    async with router(wire, server, acks=False) as one:
        await update(wire, name, ["model"], wanted("digits:2"))
        await one.until(lambda: before.replicas[0].name not in one.replicas(name))
        assert len(one.replicas(name)) == 1
        assert len((await get(wire, name)).replicas) == 2
        await one.say(acked=one.cursor)
        await until(wire, name, lambda found: len(found.replicas) == 1)


async def test_a_deployment_leaves_the_table_when_it_is_deleted(
    wire: Wire, server: HatobaServer, name: str
) -> None:
    await create(wire, name)
    await settled(wire, name)
    async with router(wire, server) as one:
        await wire.once(deployment_pb2.DeleteDeploymentRequest(name=name), Deployment)
        await one.until(lambda: full(name) not in one.routes)
        assert one.replicas(name) == []


async def test_routers_know_who_may_ask_and_for_what(
    wire: Wire, server: HatobaServer, name: str
) -> None:
    await create(wire, name)
    async with router(wire, server) as one:
        admin = hashlib.sha256(server.token().encode()).hexdigest()
        assert admin in {access.sha256 for access in one.access}
        worker = hashlib.sha256(server.token("worker").encode()).hexdigest()
        assert worker not in {access.sha256 for access in one.access}
        request = admin_pb2.CreateTokenRequest(
            principal="phone", role=admin_pb2.ROLE_PREDICT, deployment=full(name)
        )
        made = await wire.once(request, admin_pb2.CreateTokenResponse)
        digest = hashlib.sha256(made.secret.encode()).hexdigest()
        await one.until(lambda: digest in {access.sha256 for access in one.access})
        (access,) = [found for found in one.access if found.sha256 == digest]
        assert (access.deployment, access.principal) == (full(name), "phone")


async def test_only_routers_follow_the_table(wire: Wire, server: HatobaServer) -> None:
    stub = deployment_pb2_grpc.DeploymentServiceStub(await wire.channel())
    token = server.token("worker")
    call = stub.WatchDeployments(metadata=(("authorization", f"Bearer {token}"),))
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_errors_that_routers_see_roll_a_revision_back(
    wire: Wire, server: HatobaServer, name: str
) -> None:
    await create(wire, name)
    await settled(wire, name)
    async with router(wire, server) as one:
        spec = wanted("digits:2")
        spec.strategy.bake.FromSeconds(60)
        await update(wire, name, ["model", "strategy"], spec)
        await until(wire, name, lambda f: f.rollout.state == deployment_pb2.ROLLOUT_STATE_BAKING)
        told = deployment_pb2.RouteStatistics(
            deployment=full(name), revision=2, requests=20, errors=20, last_error="KeyError: x"
        )
        await one.say(acked=one.cursor, statistics=[told])
        failed = await until(wire, name, lambda f: f.rollout.state in GOES_BACK)
        assert "20 of 20 requests to revision 2 failed" in failed.rollout.cause.message
        assert "KeyError: x" in failed.rollout.cause.message


# -- predictions -----------------------------------------------------------------------------------


def kept(name: str, version: int = 1) -> deployment_pb2.Prediction:
    """A prediction that a router kept."""
    made = deployment_pb2.Prediction(
        trace_id=uuid.uuid4().hex,
        deployment=full(name),
        revision=1,
        model_version=f"projects/default/models/digits/versions/{version}",
        replica="r-1",
        status=200,
        item="item-1",
    )
    made.time.FromSeconds(1_700_000_000)
    made.duration.FromMilliseconds(12)
    return made


def captured(dataset: str, ident: str) -> deployment_pb2.CapturedItem:
    """An input for a dataset's head."""
    item = dataset_pb2.DatasetItem(id=ident, path=f"{ident}.json", data=b"[1, 2]")
    item.attributes.update({"prediction": 3})
    return deployment_pb2.CapturedItem(dataset=dataset, item=item)


async def head(wire: Wire, dataset: str) -> list[str]:
    """Ids of a head's items."""
    request = dataset_pb2.ListDatasetItemsRequest(name=dataset, head=True)
    page = await wire.once(request, dataset_pb2.ListDatasetItemsResponse)
    return [one.id for one in page.items]


async def test_a_prediction_is_explained_by_its_trace_id(wire: Wire, name: str) -> None:
    made = kept(name)
    span = job_pb2.Span(
        trace_id=made.trace_id,
        span_id="1" * 16,
        name="predict",
        start_unix_nanos=1,
        end_unix_nanos=2,
        process="hatoba-router/1",
    )
    report = Report(batch=uuid.uuid4().hex, predictions=[made], spans=[span])
    assert (await wire.once(report, Reported)).refused == 0
    request = deployment_pb2.ExplainPredictionRequest(name=f"predictions/{made.trace_id}")
    found = await wire.once(request, deployment_pb2.PredictionExplanation)
    assert found.prediction == made
    assert found.model_version.name.endswith("digits/versions/1")
    assert found.model_version.metrics["accuracy"] == 0.97
    assert found.job == "projects/default/jobs/train-7"
    assert (found.code.name, found.code.git_commit) == (
        "projects/default/code/train/versions/1",
        COMMIT,
    )
    assert [one.name for one in found.datasets] == ["projects/default/datasets/images/versions/1"]
    assert [one.name for one in found.spans] == ["predict"]


async def test_a_prediction_whose_model_is_gone_is_still_known(wire: Wire, name: str) -> None:
    made = kept(name, version=99)
    await wire.once(Report(batch=uuid.uuid4().hex, predictions=[made]), Reported)
    request = deployment_pb2.ExplainPredictionRequest(name=made.trace_id)
    found = await wire.once(request, deployment_pb2.PredictionExplanation)
    assert found.prediction == made
    assert not found.HasField("model_version")


async def test_a_report_is_taken_once(wire: Wire, name: str) -> None:
    items = [captured(name, "a"), captured(name, "b")]
    report = Report(batch=uuid.uuid4().hex, predictions=[kept(name)], captured=items)
    for _ in range(2):
        assert (await wire.once(report, Reported)).refused == 0
    assert await head(wire, name) == ["a", "b"]


async def test_what_cannot_be_captured_is_refused_and_the_rest_is_kept(
    wire: Wire, name: str
) -> None:
    bad = captured("Not A Name", "x")
    report = Report(batch=uuid.uuid4().hex, captured=[captured(name, "a"), bad])
    assert (await wire.once(report, Reported)).refused == 1
    assert await head(wire, name) == ["a"]


async def test_what_was_not_kept_is_not_found(wire: Wire) -> None:
    request = deployment_pb2.ExplainPredictionRequest(name="f" * 32)
    refused = await refusal(wire, request, deployment_pb2.PredictionExplanation)
    assert refused.code() is grpc.StatusCode.NOT_FOUND
    assert "sampled" in refused.details()
