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
from hatoba.devices import say_requirement
from hatoba.v1 import common_pb2, deployment_pb2, device_pb2, job_pb2

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


def fleet(state: str = "PROGRESSING", rollout: str = "RUNNING", **tally: int) -> Deployment:
    """A deployment to a thousand devices, in the second of its three groups."""
    made = deployment(state, rollout)
    made.name = "projects/default/deployments/shelf"
    made.revisions[0].weight, made.revisions[0].wanted, made.revisions[0].ready = 0, 990, 812
    del made.urls[:]
    targets = made.spec.devices
    targets.selector.add(key="site", operator=LABEL_OPERATOR_IN, values=["tokyo"])
    targets.groups.add(percent=5)
    group = targets.groups.add(devices=10, approve=True)
    group.require.add(key="ring", operator=LABEL_OPERATOR_IN, values=["canary"])
    targets.per_minute, targets.growth, targets.growth_after = 20, 2, 100
    targets.abort_share = 0.2
    made.rollout.step = 1
    for column, count in (tally or {"waiting": 185, "succeeded": 812, "failed": 3}).items():
        setattr(made.devices, column, count)
    made.devices.total = sum((tally or {"all": 1000}).values())
    made.devices.connected = 640
    return made


LABEL_OPERATOR_IN = job_pb2.LABEL_OPERATOR_IN


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


def test_what_devices_run_is_deleted_after_a_question_with_their_number(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = fleet()
    asked = cli("deployments", "delete", "shelf", input="y\n")
    assert "it runs on 812 devices; take deployment shelf away?" in asked.stderr
    assert cli("deployments", "delete", "shelf", "--yes").exit_code == 0
    assert cli("deployments", "delete", "shelf", "--yes", "--allow-removal").exit_code == 0
    said = [one.allow_removal for one in fake.requests("DeleteDeploymentRequest")]
    assert said == [True, False, True]


def test_watch_shows_each_change_once(served: Deployments, cli: Cli) -> None:
    going = deployment("PROGRESSING", "RUNNING", ready=0)
    served.courses = [[going, going, deployment()]]
    lines = cli("deployments", "watch", "reader").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["RUNNING", "READY"]


def test_what_is_not_there_exits_with_3(cli: Cli) -> None:
    assert cli("deployments", "get", "nobody").exit_code == Exit.NOT_FOUND


# -- on devices ------------------------------------------------------------------------------------


def test_deploy_to_devices_says_which_and_how_fast(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    result = cli(
        "deploy", "digits@production", "--name", "shelf", "--no-wait",
        "--selector", "site in (tokyo,osaka)", "--selector", "old!=yes", "--group", "5%",
        "--group", "10,ring=canary,approve", "--per-minute", "20", "--growth", "2",
        "--growth-after", "100", "--go-on-share", "0.95", "--group-wait", "1h", "--abort-share",
        "0.1", "--abort-least", "5", "--retries", "0", "--retry-wait", "10m", "--bake", "2m",
        "--offer-deadline", "14d", "--apply-deadline", "30m", "--allow-unenforced-limits",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (request,) = fake.requests("CreateDeploymentRequest")
    targets = request.spec.devices
    assert [say_requirement(one) for one in targets.selector] == ["site=tokyo,osaka", "old!=yes"]
    assert [(one.percent, one.devices, one.approve) for one in targets.groups] == [
        (5, 0, False),
        (0, 10, True),
    ]
    assert (targets.per_minute, targets.growth, targets.growth_after) == (20, 2.0, 100)
    assert (targets.go_on_share, targets.abort_share, targets.abort_least) == (0.95, 0.1, 5)
    assert (targets.HasField("retries"), targets.retries) == (True, 0)
    seconds = (targets.group_wait, targets.retry_wait, targets.offer_deadline)
    assert [one.seconds for one in seconds] == [3600, 600, 14 * 86_400]
    assert (targets.apply_deadline.seconds, request.spec.strategy.bake.seconds) == (1800, 120)
    assert targets.allow_unenforced_limits


def test_another_selector_keeps_the_rest_and_says_whether_devices_may_lose_it(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = fleet()
    arguments = ("deploy", "digits:3", "--name", "shelf", "--no-wait", "--selector", "site=osaka")
    assert cli(*arguments, "--group", "none").exit_code == 0
    assert cli(*arguments, "--allow-removal").exit_code == 0
    first, second = fake.requests("UpdateDeploymentRequest")
    assert list(first.update_mask.paths) == ["devices", "model"]
    assert [say_requirement(one) for one in first.spec.devices.selector] == ["site=osaka"]
    assert (list(first.spec.devices.groups), first.spec.devices.per_minute) == ([], 20)
    assert (first.allow_removal, second.allow_removal) == (False, True)
    assert len(second.spec.devices.groups) == 2


def test_what_only_devices_have_needs_a_selector(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = deployment()
    result = cli("deploy", "digits:3", "--name", "reader", "--per-minute", "5")
    assert result.exit_code == Exit.USAGE
    assert "per_minute: only deployments to devices have that" in result.stderr
    assert fake.requests("UpdateDeploymentRequest") == []
    bad = cli("deploy", "digits:3", "--selector", "a", "--group", "ring=a,b")
    assert bad.exit_code == Exit.USAGE
    assert "ring in (a,b)" in bad.stderr


def test_a_deployment_to_devices_is_shown_with_columns_that_add_up(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    served.known = fleet(
        waiting=120, offered=30, under_way=38, succeeded=790, failed=3, rejected=2, timed_out=1,
        not_reached=6, superseded=4, left=6,
    )  # fmt: skip
    served.known.rollout.waiting_for = "38 devices that apply it"
    text = cli("deployments", "get", "shelf").stdout
    for words in (
        "site=tokyo",
        "790/994 devices",
        "1  5%                                        through",
        "2  10 of ring=canary, once somebody resumes  its turn",
        "3  the rest",
        "20 devices a minute, x2 after each 100",
        "on more than 20% of those that took it up",
        "38 devices that apply it",
        "1,000  640 connected",
    ):
        assert words in text, text
    lines = text[text.index("waiting  ") : text.index("total  ")].splitlines()[:-1]
    counts = [int(line.partition("█")[0].split()[-1]) for line in lines]
    assert (len(counts), sum(counts)) == (10, 1000)
    assert "2 (digits:2)  runs on 812 of 990 devices that are to have it" in text


def test_the_list_says_on_how_many_devices_it_runs(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeploymentsRequest"] = deployment_pb2.ListDeploymentsResponse(
        deployments=[deployment(), fleet()]
    )
    text = cli("deployments", "list").stdout
    assert "2 of 2" in text
    assert "812/1,000 devices" in text


def test_what_was_taken_back_leaves_what_ran_before_on_its_devices(
    fake: FakeServer, cli: Cli
) -> None:
    taken_back = fleet("READY", "ROLLED_BACK", failed=3, superseded=997)
    taken_back.current_revision = 1
    taken_back.revisions.add(revision=1, wanted=1000, ready=998)
    fake.replies["ListDeploymentsRequest"] = deployment_pb2.ListDeploymentsResponse(
        deployments=[taken_back]
    )
    assert "998/1,000 devices" in cli("deployments", "list").stdout


def test_a_rollout_to_devices_is_told_in_lines_where_nobody_watches(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    going, more = fleet(waiting=1000), fleet()
    done = fleet("DEGRADED", "SUCCEEDED", succeeded=990, not_reached=8, failed=2)
    served.courses = [[going, going, more, done]]
    assert cli("deployments", "watch", "shelf").stdout.splitlines() == [
        "shelf  RUNNING group 2 of 3  digits:2 on 0/1,000 devices; 1,000 waiting",
        "shelf  RUNNING group 2 of 3  digits:2 on 812/1,000 devices; 185 waiting, "
        "812 succeeded, 3 failed",
        "shelf  DEGRADED  digits:2 on 990/1,000 devices; 990 succeeded, 2 failed, 8 not reached",
    ]
    assert len(fake.requests("WatchDeploymentRequest")) == 1, "DEGRADED is settled, of devices"
    served.courses = [[going, done]]
    result = cli("deploy", "digits:2", "--name", "shelf", "--selector", "site=tokyo")
    assert result.exit_code == 0, result.output
    assert "shelf is DEGRADED\n  digits:2 runs on 990/1,000 devices" in result.stderr
    assert "hatoba deployments devices shelf --stage not-reached" in result.stderr
    assert "\x1b" not in result.output


def test_a_terminal_gets_one_table_that_is_drawn_again(served: Deployments, cli: Cli) -> None:
    done = fleet("READY", "SUCCEEDED", succeeded=1000)
    served.courses = [[fleet(waiting=1000), fleet(), done]]
    terminal = {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "40"}
    text = cli("deployments", "watch", "shelf", env=terminal).stdout
    drawn = text.split("shelf  ")[1:]
    assert "\x1b[1A" in drawn[1], "it goes up, and writes over what was there"
    assert "succeeded      812  " in drawn[1]
    assert "succeeded    1,000  " in drawn[-1]
    assert max(len(line) for line in drawn[-1].splitlines()) <= 80


def test_a_rollout_to_devices_that_is_given_up_says_where_to_look(
    served: Deployments, cli: Cli
) -> None:
    failed = fleet("READY", "ROLLED_BACK")
    failed.rollout.cause.message = "Revision 2 failed on 3 of 10 devices that took it up"
    served.courses = [[failed]]
    result = cli("deploy", "digits:2", "--name", "shelf", "--selector", "site=tokyo")
    assert result.exit_code == Exit.ROLLED_BACK
    assert "failed on 3 of 10 devices" in result.stderr
    assert "hatoba deployments devices shelf --stage failed" in result.stderr


def test_a_rollout_to_devices_is_over_though_some_still_get_it() -> None:
    assert is_done(fleet("PROGRESSING", "SUCCEEDED"))
    assert not is_done(fleet())
    assert is_done(fleet("PAUSED", "PAUSED"))


def on_the_way(name: str, stage: str, **fields: Any) -> device_pb2.RolloutDevice:
    """A device on the way to a revision."""
    made = device_pb2.RolloutDevice(
        device=f"devices/{name}",
        stage=device_pb2.DeviceStage.Value(f"DEVICE_STAGE_{stage}"),
        **fields,
    )
    made.since.GetCurrentTime()
    return made


def test_devices_of_a_deployment_are_listed_by_stage(fake: FakeServer, cli: Cli) -> None:
    cause = common_pb2.Cause(message="it needs 410 MiB")
    fake.replies["ListRolloutDevicesRequest"] = device_pb2.ListRolloutDevicesResponse(
        devices=[
            on_the_way("shop-1", "REJECTED", group=1, cause=cause),
            on_the_way("shop-2", "OFFERED", tries=2, connected=True),
        ]
    )
    text = cli(
        "deployments", "devices", "shelf", "--stage", "rejected", "--stage", "offered"
    ).stdout
    heads, first, second = text.splitlines()
    assert heads.split() == [
        "DEVICE", "GROUP", "STAGE", "FOR", "UNTIL", "TRIES", "LINK", "CAUSE",
    ]  # fmt: skip
    assert first.split()[:3] == ["shop-1", "2", "REJECTED"]
    assert first.endswith("away       it needs 410 MiB")
    assert second.split()[-3:] == ["2", "connected", "-"]
    (asked,) = fake.requests("ListRolloutDevicesRequest")
    assert [device_pb2.DeviceStage.Name(one)[13:] for one in asked.stages] == [
        "REJECTED",
        "OFFERED",
    ]
    plain = json.loads(cli("deployments", "devices", "shelf", "-o", "json").stdout)
    assert plain["devices"][0]["stage"] == "REJECTED"
    bad = cli("deployments", "devices", "shelf", "--stage", "lost")
    assert (bad.exit_code, "'lost' is no stage" in bad.stderr) == (Exit.USAGE, True)


def test_it_is_tried_again_on_devices(fake: FakeServer, cli: Cli) -> None:
    fake.replies["RetryRolloutDevicesRequest"] = device_pb2.RetryRolloutDevicesResponse(devices=2)
    words = ("deployments", "retry", "shelf", "--device", "shop-1", "--stage", "timed-out")
    assert cli(*words).stdout == "tried again on 2 devices\n"
    (asked,) = fake.requests("RetryRolloutDevicesRequest")
    assert (asked.deployment, list(asked.devices)) == ("shelf", ["shop-1"])
    assert list(asked.stages) == [device_pb2.DEVICE_STAGE_TIMED_OUT]
    fake.replies["RetryRolloutDevicesRequest"] = device_pb2.RetryRolloutDevicesResponse()
    assert "nothing is to be tried again" in cli("deployments", "retry", "shelf").stdout
    assert cli("deployments", "retry", "shelf", "--stage", "baking").exit_code == Exit.USAGE


def test_when_devices_got_there_is_drawn(fake: FakeServer, cli: Cli, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    found = [on_the_way(f"shop-{n}", "FAILED" if n == 3 else "SUCCEEDED") for n in range(6)]
    fake.replies["ListRolloutDevicesRequest"] = device_pb2.ListRolloutDevicesResponse(devices=found)
    target = tmp_path / "course.png"
    result = cli("deployments", "devices", "shelf", "--plot", str(target))
    assert result.exit_code == 0, result.output
    assert target.read_bytes().startswith(b"\x89PNG")
    fake.replies["ListRolloutDevicesRequest"] = device_pb2.ListRolloutDevicesResponse()
    nothing = cli("deployments", "devices", "shelf", "--plot", str(target))
    assert "nothing to draw" in nothing.stderr


def test_plan_names_the_devices_that_come_and_go(
    fake: FakeServer, served: Deployments, cli: Cli
) -> None:
    fake.replies["PlanDevicesRequest"] = device_pb2.DevicePlan(
        comes=1_202, stays=7, goes=1, coming=["devices/a", "devices/b"], going=["shop-9"]
    )
    result = cli("plan", "--deployment", "shelf", "--selector", "site=osaka")
    assert result.stdout.splitlines() == [
        "shelf  +1,202 -1 devices (7 stay)",
        "  + a",
        "  + b",
        "  + and 1,200 more",
        "  - shop-9",
    ]
    assert "--allow-removal" in result.stderr
    served.known = fleet()
    assert cli("plan", "--deployment", "shelf", "-o", "json").exit_code == 0
    first, second = fake.requests("PlanDevicesRequest")
    assert (first.deployment, first.project) == ("shelf", "default")
    assert [say_requirement(one) for one in first.selector] == ["site=osaka"]
    assert [say_requirement(one) for one in second.selector] == ["site=tokyo"]


def test_plan_says_who_cannot_have_it_and_why(fake: FakeServer, cli: Cli) -> None:
    why = "it needs 410 MiB of disk, there are 220 MiB"
    fake.replies["PlanDevicesRequest"] = device_pb2.DevicePlan(
        comes=1_200,
        refused=1_100,
        refusals=[device_pb2.DeviceRefusal(device="shelf-9", message=why)],
    )
    result = cli("plan", "--deployment", "shelf", "--selector", "site=osaka")
    assert result.stdout.splitlines()[-3:] == [
        "1,100 of the 1,200 that come cannot have it:",
        f"  ! shelf-9: {why}",
        "  ! and 1,099 more",
    ]


def test_a_plan_is_of_one_thing(fake: FakeServer, served: Deployments, cli: Cli) -> None:
    served.known = deployment()
    for arguments, words in (
        (["--deployment", "shelf", "--gpus", "2"], "only --selector is read"),
        (["--deployment", "shelf", "--", "true"], "only --selector is read"),
        (["--selector", "a=b", "--", "true"], "name it with --deployment"),
        (["--deployment", "reader"], "reader does not run on devices"),
    ):
        result = cli("plan", *arguments)
        assert result.exit_code == Exit.USAGE, result.output
        assert words in result.stderr
    assert fake.requests("PlanDevicesRequest") == []


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
