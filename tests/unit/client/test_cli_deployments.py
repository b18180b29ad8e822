"""`hatoba deploy`, `deployments` and `explain`, and the SDK below them, against fakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from click.testing import Result

from hatoba.cli.deploy import parse_canary
from hatoba.cli.exits import Exit
from hatoba.client import Client
from hatoba.deployments import default_name, is_done
from hatoba.v1 import common_pb2, deployment_pb2

from .conftest import FakeServer, start

Cli = Callable[..., Result]
Context = grpc.ServicerContext
Deployment = deployment_pb2.Deployment
STATES, ROLLOUTS = deployment_pb2.DeploymentState, deployment_pb2.RolloutState


def deployment(
    state: str = "READY", rollout: str = "SUCCEEDED", *, ready: int = 2, **fields: Any
) -> Deployment:
    """A deployment of two replicas at its second revision."""
    made = Deployment(
        name="projects/default/deployments/reader",
        uid="u",
        state=STATES.Value(f"DEPLOYMENT_STATE_{state}"),
        etag="d-1",
        current_revision=2,
        created_by="ann",
        urls=["http://127.0.0.1:8000/reader"],
        **fields,
    )
    made.spec.model, made.spec.replicas = "digits:2", 2
    made.rollout.number, made.rollout.from_revision, made.rollout.to_revision = 2, 1, 2
    made.rollout.state = ROLLOUTS.Value(f"ROLLOUT_STATE_{rollout}")
    if rollout in ("SUCCEEDED", "ROLLED_BACK", "FAILED"):
        made.rollout.end_time.GetCurrentTime()
    version = "projects/default/models/digits/versions/2"
    made.revisions.add(revision=2, model_version=version, weight=100, wanted=2, ready=ready)
    made.create_time.GetCurrentTime()
    return made


@dataclass
class Deployments:
    """DeploymentService: one deployment, or none, and the courses that its watchers see."""

    fake: FakeServer
    known: Deployment | None = None
    courses: list[list[Deployment]] = field(default_factory=list)
    """What each watch tells, one after the other; the last one again and again."""

    def GetDeployment(
        self, request: deployment_pb2.GetDeploymentRequest, context: Context
    ) -> Deployment:
        """The one there is."""
        self.fake.heard(request, context)
        if self.known is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no deployment {request.name!r}")
        assert self.known is not None
        return self.known

    def WatchDeployment(
        self, request: deployment_pb2.WatchDeploymentRequest, context: Context
    ) -> Iterator[Deployment]:
        """The next course."""
        self.fake.heard(request, context)
        if not self.courses:
            context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        yield from self.courses.pop(0)

    def TailReplicaLogs(
        self, request: deployment_pb2.TailReplicaLogsRequest, context: Context
    ) -> Iterator[deployment_pb2.TailReplicaLogsResponse]:
        """Two pieces."""
        self.fake.heard(request, context)
        for data in (b"one\n", b"two\n"):
            yield deployment_pb2.TailReplicaLogsResponse(replica="r-1", data=data)


def handler(made: Deployments) -> grpc.GenericRpcHandler:
    """The service: what the fake has no method for gets the prepared reply, or an empty one."""
    described = deployment_pb2.DESCRIPTOR.services_by_name["DeploymentService"]
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, method in described.methods_by_name.items():
        reply = getattr(deployment_pb2, method.output_type.name)
        answer = getattr(made, name, None) or _canned(made, reply)
        streams = method.server_streaming
        make = grpc.unary_stream_rpc_method_handler if streams else _unary
        asked = getattr(deployment_pb2, method.input_type.name)
        methods[name] = make(
            answer,
            request_deserializer=asked.FromString,
            response_serializer=reply.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(described.full_name, methods)


_unary: Any = grpc.unary_unary_rpc_method_handler


def _canned(made: Deployments, reply: type[Any]) -> Callable[[Any, Context], Any]:
    def answer(request: Any, context: Context) -> Any:
        known = made.known or deployment()
        return made.fake.reply(request, context, known if reply is Deployment else reply())

    return answer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server of fakes that has the deployments as well."""
    fake = FakeServer()
    made = Deployments(fake)
    fake.services.append(lambda server: server.add_generic_rpc_handlers((handler(made),)))
    server = start(fake)
    _SERVED[id(fake)] = made
    yield fake
    server.stop(None).wait()
    del _SERVED[id(fake)]


_SERVED: dict[int, Deployments] = {}


@pytest.fixture
def served(fake: FakeServer) -> Deployments:
    """The fake's deployments."""
    return _SERVED[id(fake)]


# -- deploy ----------------------------------------------------------------------------------------


def test_deploy_makes_a_deployment_and_follows_its_rollout(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    going = deployment("PROGRESSING", "RUNNING", ready=1)
    served.courses = [[going, going, deployment()]]
    result = cli(
        "deploy", "digits@production", "--name", "reader", "--replicas", "2", "--env", "A=1",
        "--canary", "10:60s,50:5m", "--bake", "10s", "--capture", "seen", "--capture-rate", "0.1",
        "--memory", "2Gi", "--secret", "key=KEY", "--max-body", "1Mi", "--no-rollback",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (request,) = fake.requests("CreateDeploymentRequest")
    spec = request.spec
    assert (request.deployment, request.project, spec.model) == (
        "reader",
        "default",
        "digits@production",
    )
    assert [(one.percent, one.hold.seconds) for one in spec.strategy.steps] == [(10, 60), (50, 300)]
    assert (spec.replicas, spec.strategy.bake.seconds, dict(spec.env)) == (2, 10, {"A": "1"})
    assert (spec.capture.dataset, spec.capture.rate) == ("seen", 0.1)
    assert (spec.resources.memory_bytes, spec.limits.max_body_bytes) == (2 << 30, 1 << 20)
    assert [(one.name, one.env) for one in spec.secrets] == [("key", "KEY")]
    assert spec.strategy.no_rollback
    told = [line for line in result.stderr.splitlines() if "reader  RUNNING" in line]
    assert len(told) == 1, "a line for each change, not for each message"
    assert "2: digits:2 1/2 ready 100%" in told[0]
    assert "reader is READY at http://127.0.0.1:8000/reader" in result.stderr


def test_deploy_changes_what_is_said_of_a_deployment_that_is_there(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = deployment()
    served.known.spec.strategy.bake.seconds = 7
    served.known.spec.strategy.steps.add(percent=5)
    result = cli("deploy", "digits:3", "--name", "reader", "--canary", "none", "--no-wait")
    assert result.exit_code == 0, result.output
    (request,) = fake.requests("UpdateDeploymentRequest")
    assert list(request.update_mask.paths) == ["model", "strategy"]
    assert (request.etag, request.spec.model) == ("d-1", "digits:3")
    assert list(request.spec.strategy.steps) == []
    assert request.spec.strategy.bake.seconds == 7, "what is not said stays"
    assert fake.requests("WatchDeploymentRequest") == []


def test_a_rollout_that_is_rolled_back_says_why_and_exits_with_24(
    served: Deployments, cli: Cli
) -> None:
    failed = deployment("READY", "ROLLED_BACK")
    failed.rollout.cause.CopyFrom(
        common_pb2.Cause(
            message="Revision 2 had 0 of 2 replicas ready after 300 s.",
            last_log_lines=["Traceback", "ImportError: no module named cv2"],
        )
    )
    served.courses = [[deployment("PROGRESSING", "ROLLING_BACK"), failed]]
    result = cli("deploy", "digits:2", "--name", "reader")
    assert result.exit_code == Exit.ROLLED_BACK
    assert "the roll-out of revision 2 is ROLLED_BACK" in result.stderr
    assert "had 0 of 2 replicas ready" in result.stderr
    assert "ImportError: no module named cv2" in result.stderr
    assert "hatoba deployments events reader" in result.stderr


def test_a_canary_that_waits_for_somebody_ends_the_following(served: Deployments, cli: Cli) -> None:
    paused = deployment("PAUSED", "PAUSED")
    paused.rollout.waiting_for = "somebody to resume it: this step has no end"
    served.courses = [[paused]]
    result = cli("deploy", "digits:2", "--name", "reader")
    assert result.exit_code == 0
    assert "waits for somebody to resume it" in result.stderr
    assert "hatoba deployments promote reader" in result.stderr


def test_following_goes_on_when_the_stream_breaks(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    going = deployment("PROGRESSING", "RUNNING", ready=0)
    served.courses = [[going], [deployment()]]
    result = cli("deploy", "digits:2", "--name", "reader")
    assert result.exit_code == 0, result.output
    assert len(fake.requests("WatchDeploymentRequest")) == 2


@pytest.mark.parametrize("text", ["101:5s", "ten", "10:5", "0", "10:60s;50"])
def test_a_canary_that_is_none_is_a_usage_error(text: str, cli: Cli) -> None:
    result = cli("deploy", "digits:1", "--canary", text)
    assert result.exit_code == Exit.USAGE


def test_words_of_deploying() -> None:
    assert parse_canary("10:60s, 50") == [(10, 60.0), (50, 0.0)]
    assert parse_canary("none") == []
    references = ["digits", "digits:7", "digits@production", "models/digits:7"]
    full = "projects/p/models/digits/versions/7"
    assert {default_name(text) for text in [*references, full]} == {"digits"}
    assert not is_done(deployment("PROGRESSING", "RUNNING"))
    assert is_done(deployment("FAILED", "FAILED"))


# -- the noun --------------------------------------------------------------------------------------


def test_deployments_are_listed_and_shown(fake: FakeServer, served: Deployments, cli: Cli) -> None:
    fake.replies["ListDeploymentsRequest"] = deployment_pb2.ListDeploymentsResponse(
        deployments=[deployment()]
    )
    row = cli("deployments", "list").stdout.splitlines()[1].split()
    assert row[:3] == ["reader", "READY", "digits:2"]
    served.known = deployment("DEGRADED")
    served.known.cause.message = "it ended with exit code 1"
    served.known.replicas.add(name="r-1", state=deployment_pb2.REPLICA_STATE_UNHEALTHY, restarts=3)
    text = cli("deployments", "get", "reader").stdout
    assert "reader  DEGRADED" in text
    assert "it ended with exit code 1" in text
    assert "2 (digits:2)  2 of 2 ready, 100% of the traffic" in text
    assert "r-1  UNHEALTHY  3 restarts" in text
    plain = json.loads(cli("deployments", "get", "reader", "-o", "json").stdout)
    assert plain["state"] == "DEGRADED"
    assert plain["rollout"]["state"] == "SUCCEEDED"


def test_revisions_events_and_logs_are_read(fake: FakeServer, cli: Cli) -> None:
    version = "projects/default/models/digits/versions/7"
    fake.replies["ListRevisionsRequest"] = deployment_pb2.ListRevisionsResponse(
        revisions=[deployment_pb2.Revision(revision=3, model_version=version, proven=True)]
    )
    fake.replies["ListDeploymentEventsRequest"] = deployment_pb2.ListDeploymentEventsResponse(
        events=[
            deployment_pb2.DeploymentEvent(seq=2, kind="ready", message="All are ready."),
            deployment_pb2.DeploymentEvent(seq=1, kind="create", message="Made.", actor="ann"),
        ]
    )
    assert "3         digits:7  yes" in cli("deployments", "revisions", "reader").stdout
    lines = cli("deployments", "events", "reader").stdout.splitlines()
    assert "Made. (by ann)" in lines[0]
    assert "All are ready." in lines[1]
    assert cli("deployments", "logs", "reader", "--tail", "5").stdout == "one\ntwo\n"
    assert fake.requests("TailReplicaLogsRequest")[0].tail_lines == 5


def test_deployments_are_steered(fake: FakeServer, served: Deployments, cli: Cli) -> None:
    served.known = deployment()
    assert cli("deployments", "scale", "reader", "5").exit_code == 0
    (scaled,) = fake.requests("UpdateDeploymentRequest")
    assert (list(scaled.update_mask.paths), scaled.spec.replicas) == (["replicas"], 5)
    for verb, request in (
        ("pause", "PauseRolloutRequest"),
        ("resume", "ResumeRolloutRequest"),
        ("promote", "PromoteRolloutRequest"),
    ):
        assert cli("deployments", verb, "reader").exit_code == 0
        assert [one.name for one in fake.requests(request)] == ["reader"]
    assert (
        cli("deployments", "rollback", "reader", "--revision", "1", "--reason", "x").exit_code == 0
    )
    (back,) = fake.requests("RollBackDeploymentRequest")
    assert (back.revision, back.reason) == (1, "x")
    assert cli("deployments", "traffic", "reader", "1=80", "2=20").exit_code == 0
    assert dict(fake.requests("SetTrafficRequest")[0].weights) == {1: 80, 2: 20}
    assert cli("deployments", "traffic", "reader", "1:80").exit_code == Exit.USAGE


def test_delete_asks_first_and_waits_when_told(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = deployment()
    assert cli("deployments", "delete", "reader", input="n\n").exit_code == Exit.DETACHED
    assert fake.requests("DeleteDeploymentRequest") == []
    served.courses = [[deployment("DELETING")]]
    result = cli("deployments", "delete", "reader", "--yes", "--wait")
    assert result.exit_code == 0, result.output
    assert "removed deployment reader" in result.stderr


def test_watch_shows_each_change_once(served: Deployments, cli: Cli) -> None:
    going = deployment("PROGRESSING", "RUNNING", ready=0)
    served.courses = [[going, going, deployment()]]
    lines = cli("deployments", "watch", "reader").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["RUNNING", "READY"]


def test_what_is_not_there_exits_with_3(cli: Cli) -> None:
    assert cli("deployments", "get", "nobody").exit_code == Exit.NOT_FOUND


# -- explain ---------------------------------------------------------------------------------------


def test_explain_names_model_job_commit_and_datasets(fake: FakeServer, cli: Cli) -> None:
    found = deployment_pb2.PredictionExplanation(job="projects/default/jobs/train-7")
    found.prediction.trace_id = "ab" * 16
    found.prediction.deployment = "projects/default/deployments/reader"
    found.prediction.model_version = "projects/default/models/digits/versions/7"
    found.prediction.status, found.prediction.revision = 200, 3
    found.prediction.duration.FromMilliseconds(12)
    found.model_version.aliases.append("production")
    found.model_version.metrics["accuracy"] = 0.97
    found.code.name = "projects/default/code/train/versions/2"
    found.code.git_commit, found.code.dirty = "c" * 40, True
    found.datasets.add(name="projects/default/datasets/digits/versions/3")
    fake.replies["ExplainPredictionRequest"] = found
    text = cli("explain", f"predictions/{'ab' * 16}").stdout
    for words in (
        "200 in 12ms",
        "reader, revision 3",
        "digits:7 (production)",
        "accuracy 0.97",
        "train-7",
        "train:2  commit cccccccccccc with changes",
        "digits:3",
    ):
        assert words in text


# -- the SDK ---------------------------------------------------------------------------------------


def test_the_synchronous_client_deploys_and_waits(
    fake: FakeServer, served: Deployments, tmp_path: Any
) -> None:
    token = tmp_path / "sdk-token"
    token.write_text("t\n")
    served.courses = [[deployment("PROGRESSING", "RUNNING"), deployment()]]
    with Client(fake.address, token_file=str(token)) as client:
        made = client.deployments.deploy("digits:2", "reader", replicas=2, timeout=5)
        assert made.name.endswith("/reader")
        assert client.deployments.wait("reader").current_revision == 2
        assert client.deployments.list() == []
        assert [one.data for one in client.deployments.logs("reader")] == [b"one\n", b"two\n"]
    (request,) = fake.requests("CreateDeploymentRequest")
    assert request.spec.limits.timeout.seconds == 5
    assert request.request_id
