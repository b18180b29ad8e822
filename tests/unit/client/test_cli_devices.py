"""`hatoba devices`, `explain devices/NAME`, and the SDK below them, against fakes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import Result
from google.rpc import error_details_pb2, status_pb2

from hatoba.aio import AsyncClient
from hatoba.cli.device_words import Finding, Seen, findings
from hatoba.cli.exits import Exit
from hatoba.client import Client
from hatoba.devices import parse_group, say_requirement
from hatoba.errors import FailedPrecondition, InvalidSpec
from hatoba.settings import Server
from hatoba.terms import parse_requirement
from hatoba.tracing import Tracer
from hatoba.transport import Timing
from hatoba.v1 import common_pb2, device_pb2, job_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]
Device = device_pb2.Device
SHELF = "projects/default/deployments/shelf"
DAY = 86_400.0


def device(name: str = "shop-17", *, away: float = 0.0, **fields: Any) -> Device:
    """An enrolled device that has done what is wanted; `away`: seconds since it was here."""
    made = Device(
        name=f"devices/{name}",
        state=device_pb2.DEVICE_STATE_ENROLLED,
        connected=not away,
        labels={"site": "tokyo", "ring": "canary"},
        platform=device_pb2.DevicePlatform(architecture="arm", variant="v7"),
        capacity=device_pb2.DeviceCapacity(
            cpus=4, memory_bytes=512 << 20, disk_bytes=4 << 30, limits_memory=True
        ),
        acked=12,
        settled=12,
        agent="0.1.0",
        transport="grpc",
        etag="v7",
        **fields,
    )
    made.desired.generation = 12
    made.desired.wants.add(deployment=SHELF, revision=3)
    made.create_time.FromSeconds(1_790_000_000)
    made.last_seen.FromMicroseconds(round((time.time() - away) * 1e6))
    made.certificate_expire_time.FromMicroseconds(round((time.time() + 60 * DAY) * 1e6))
    made.report.generation, made.report.settled = 12, True
    made.report.slots.add(
        deployment=SHELF,
        revision=3,
        running=3,
        phase=device_pb2.SLOT_PHASE_GOOD,
        address="127.0.0.1:8080",
    )
    return made


def behind(*, message: str = "it needs 410 MiB of memory, there are 220 MiB") -> Device:
    """A device that is away, whose newest revision does not fit."""
    made = device(away=3 * DAY)
    made.settled, made.acked = 11, 11
    made.explanation = "offline 3 d; gets generation 12 (digits:7) on connect"
    del made.report.slots[:]
    cause = common_pb2.Cause(code=common_pb2.CAUSE_CODE_NOT_READY, message=message)
    made.report.slots.add(
        deployment=SHELF, revision=3, running=2, phase=device_pb2.SLOT_PHASE_BAD, cause=cause
    )
    return made


# -- add -------------------------------------------------------------------------------------------


def test_add_prints_the_line_for_the_device_and_nothing_else_on_stdout(
    fake: FakeServer, cli: Cli
) -> None:
    made = device_pb2.DeviceToken(
        name="tokens/0123", secret="he_0123_text.QUFB", uses=1, address="hatoba.example.org:7420"
    )
    made.expire_time.FromSeconds(1_800_000_000)
    fake.replies["CreateDeviceTokenRequest"] = made
    result = cli(
        "devices", "add", "--name", "shop-17", "--ttl", "7d", "--label", "site=tokyo",
        "--label", "ring=canary",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    line = "hatoba agent enroll --server hatoba.example.org:7420 --token he_0123_text.QUFB"
    assert result.stdout == f"{line} --name shop-17\n"
    assert "device shop-17" in result.stderr
    assert "one machine, until 2027" in result.stderr
    assert "hatoba tokens revoke 0123" in result.stderr
    (asked,) = fake.requests("CreateDeviceTokenRequest")
    assert (asked.device, asked.uses, asked.ttl.seconds) == ("shop-17", 1, 7 * 86_400)
    assert dict(asked.labels) == {"site": "tokyo", "ring": "canary"}


def test_a_line_for_a_factory_names_no_device(fake: FakeServer, cli: Cli) -> None:
    fake.replies["CreateDeviceTokenRequest"] = device_pb2.DeviceToken(
        name="tokens/0123", secret="s", uses=5000, address="a:1"
    )
    result = cli("devices", "add", "--uses", "5000", "--server", "10.0.0.7:7420")
    assert result.stdout == "hatoba agent enroll --server 10.0.0.7:7420 --token s\n"
    assert "5,000 machines" in result.stderr
    assert not fake.requests("CreateDeviceTokenRequest")[0].HasField("ttl")
    plain = json.loads(cli("devices", "add", "-o", "json").stdout)
    assert (plain["secret"], plain["uses"]) == ("s", 5000)


@pytest.mark.parametrize("transport", ["grpc", "aws-iot"])
def test_a_line_says_what_its_devices_dial(fake: FakeServer, cli: Cli, transport: str) -> None:
    fake.replies["CreateDeviceTokenRequest"] = device_pb2.DeviceToken(
        name="tokens/0123", secret="s", uses=1, address="a:1", transport=transport
    )
    result = cli("devices", "add", "--transport", transport)
    assert result.stdout == "hatoba agent enroll --server a:1 --token s\n"
    assert fake.requests("CreateDeviceTokenRequest")[0].transport == transport


@pytest.mark.parametrize(("transport", "said"), [("grpc", False), ("aws-iot", True)])
def test_a_revocation_says_what_ended(
    fake: FakeServer, cli: Cli, transport: str, *, said: bool
) -> None:
    fake.replies["RevokeDeviceRequest"] = device_pb2.Device(
        name="devices/shop-17", state=device_pb2.DEVICE_STATE_REVOKED, transport=transport
    )
    result = cli("devices", "revoke", "shop-17", "--yes")
    assert result.exit_code == 0, result.output
    assert ("its certificates at AWS IoT are ended" in result.stderr) is said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "--name", "a", "--uses", "2"], "--name is for one device"),
        (["add", "--label", "site"], "'site' is not a label"),
        (["add", "--label", "a=1", "--label", "a=2"], "--label says 'a' twice"),
        (["add", "--uses", "0"], "1<=x<=100000"),
        (["add", "--transport", "mqtt"], "'mqtt' is not one of 'grpc', 'aws-iot'"),
        (["list", "--selector", "="], "asks nothing of a label"),
        (["label", "shop-17", "site"], "KEY- to take one away"),
        (["label", "shop-17", "a=1", "a-"], "a: given and taken away at once"),
        (["label", "shop-17"], "K=V|K-"),
        (["label", "a=1"], "name a device, or say which with --selector"),
        (["label", "shop-17", "a=1", "--selector", "a"], "and not both"),
        (["revoke"], "name a device, or say which with --selector"),
        (["decommission", "shop-17", "--selector", "a"], "and not both"),
        (["list", "--state", "lost"], "'lost' is not one of"),
    ],
)
def test_what_cannot_be_understood_asks_the_server_nothing(
    fake: FakeServer, cli: Cli, arguments: list[str], words: str
) -> None:
    result = cli("devices", *arguments)
    assert result.exit_code == Exit.USAGE, result.output
    assert words in result.stderr
    assert fake.asked == []


# -- looking ---------------------------------------------------------------------------------------


def test_devices_are_listed_with_their_link_and_totals(fake: FakeServer, cli: Cli) -> None:
    new = Device(name="devices/new", state=device_pb2.DEVICE_STATE_LEAVING)
    fake.replies["ListDevicesRequest"] = device_pb2.ListDevicesResponse(
        devices=[behind(), device("shop-2"), new]
    )
    result = cli("devices", "list", "--selector", "site in (tokyo,osaka)", "--selector", "!old")
    heads, *rows = result.stdout.splitlines()
    assert heads.split() == ["DEVICE", "STATE", "LINK", "PLATFORM", "GENERATION", "LABELS"]
    assert [" ".join(row.split()) for row in rows] == [
        "shop-17 ENROLLED away 3d00h arm/v7 11/12 ring=canary site=tokyo",
        "shop-2 ENROLLED connected arm/v7 12/12 ring=canary site=tokyo",
        "new LEAVING never came - - -",
    ]
    assert "3 devices: 1 connected, 2 away; 1 with something to do" in result.stderr
    (asked,) = fake.requests("ListDevicesRequest")
    assert [say_requirement(one) for one in asked.selector] == ["site=tokyo,osaka", "!old"]


def test_a_list_asks_for_devices_by_how_they_are(fake: FakeServer, cli: Cli) -> None:
    words = "--away 7d --behind --state revoked --state leaving --platform arm --agent 0.1.0"
    assert "no such devices" in cli("devices", "list", *words.split()).stderr
    cli("devices", "list", "--away", "--behind")
    cli("devices", "list")
    first, second, third = fake.requests("ListDevicesRequest")
    assert (first.away.seconds, first.behind) == (7 * DAY, True)
    assert (first.platform, first.agent) == ("arm", "0.1.0")
    assert list(first.states) == [
        device_pb2.DEVICE_STATE_REVOKED,
        device_pb2.DEVICE_STATE_LEAVING,
    ]
    assert (second.HasField("away"), second.away.seconds) == (True, 0)
    assert third == device_pb2.ListDevicesRequest(page_size=third.page_size)


def test_a_wide_list_says_more_and_the_last_line_which_agents_there_are(
    fake: FakeServer, cli: Cli
) -> None:
    newer = device("shop-3")
    newer.agent = "0.2.0"
    fake.replies["ListDevicesRequest"] = device_pb2.ListDevicesResponse(
        devices=[device("shop-1"), device("shop-2"), newer, Device(name="devices/new")]
    )
    result = cli("devices", "list", "-o", "wide")
    heads, *rows = result.stdout.splitlines()
    assert heads.split()[5:] == ["AGENT", "TRANSPORT", "SEEN", "LABELS"]
    assert rows[2].split()[5:7] == ["0.2.0", "grpc"]
    assert rows[3].split()[6:] == ["-", "-", "-", "-"]
    assert result.stderr.rstrip().endswith("; agents 0.1.0 (2), 0.2.0 (1)")


def test_lists_are_for_programs_too(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDevicesRequest"] = device_pb2.ListDevicesResponse(
        devices=[device(), behind()]
    )
    result = cli("devices", "list", "-o", "json")
    plain = json.loads(result.stdout)
    assert (plain["total"], plain["connected"]) == (2, 1)
    assert plain["devices"][0]["state"] == "ENROLLED"
    assert plain["devices"][1]["report"]["slots"][0]["phase"] == "BAD"
    assert result.stderr == ""


def test_no_devices_say_how_to_make_one(fake: FakeServer, cli: Cli) -> None:
    result = cli("devices", "list")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "hatoba devices add" in result.stderr


def test_one_device_is_shown_with_what_runs_and_what_does_not(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetDeviceRequest"] = behind()
    text = cli("devices", "get", "shop-17").stdout
    for words in (
        "shop-17  ENROLLED, away 3d00h",
        "offline 3 d; gets generation 12 (digits:7) on connect",
        "12 is wanted, 11 taken up, 11 done",
        "shelf revision 3 is bad: it needs 410 MiB of memory, there are 220 MiB",
        "shelf revision 2",
        "4 cpus, 512 MiB of memory, 4 GiB of disk free",
        "0.1.0 over grpc",
    ):
        assert words in text
    assert "etag" not in text
    assert "v7" in cli("devices", "get", "shop-17", "-o", "wide").stdout.split()
    assert json.loads(cli("devices", "get", "shop-17", "-o", "json").stdout)["settled"] == "11"


def test_explain_says_what_is_wanted_what_runs_and_what_to_type(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetDeviceRequest"] = behind()
    text = cli("explain", "devices/shop-17").stdout
    assert "offline 3 d; gets generation 12" in text
    assert "it needs 410 MiB of memory, there are 220 MiB" in text
    assert "hatoba devices diagnose shop-17" in text
    assert [one.name for one in fake.requests("GetDeviceRequest")] == ["devices/shop-17"]
    fake.replies["GetDeviceRequest"] = device()
    text = cli("explain", "devices/shop-17").stdout
    assert "shelf revision 3 at 127.0.0.1:8080 of the device" in text
    assert "hatoba devices" not in text, "nothing to do about what is well"


def test_what_is_not_there_exits_with_3(fake: FakeServer, cli: Cli) -> None:
    for command in (("devices", "get", "nobody"), ("explain", "devices/nobody")):
        fake.refuse("GetDeviceRequest", grpc.StatusCode.NOT_FOUND, "there is no device 'nobody'")
        result = cli(*command)
        assert result.exit_code == Exit.NOT_FOUND
        assert "there is no device 'nobody'" in result.stderr


def line(position: int, text: str = "", *, lost: int = 0, of: str = SHELF) -> device_pb2.DeviceLog:
    """A line that came from a device."""
    made = device_pb2.DeviceLog(position=position, deployment=of, text=text, lost=lost)
    made.time.FromSeconds(1_790_000_000 + position)
    return made


def test_logs_name_their_deployment_and_their_gaps(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeviceLogsRequest"] = device_pb2.ListDeviceLogsResponse(
        lines=[line(4, "ready"), line(9, lost=1_200), line(10, "it boots", of="")]
    )
    result = cli("devices", "logs", "shop-17", "--deployment", "shelf", "--tail", "3")
    assert [row.split(maxsplit=2)[2] for row in result.stdout.splitlines()] == [
        "shelf  ready",
        "agent  it boots",
    ]
    assert "1,200 records were dropped on the device here" in result.stderr
    (asked,) = fake.requests("ListDeviceLogsRequest")
    assert (asked.deployment, asked.limit, asked.after) == (SHELF, 3, 0)
    plain = cli("devices", "logs", "shop-17", "-o", "json").stdout.splitlines()
    assert json.loads(plain[1])["lost"] == "1200"


def test_events_are_told_oldest_first(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeviceEventsRequest"] = device_pb2.ListDeviceEventsResponse(
        events=[
            device_pb2.DeviceEvent(seq=2, kind="renewed", message="It has a new certificate."),
            device_pb2.DeviceEvent(seq=1, kind="enrolled", message="Enrolled.", actor="ann"),
        ]
    )
    lines = cli("devices", "events", "shop-17", "-n", "7").stdout.splitlines()
    assert lines[0].endswith("enrolled    Enrolled. (by ann)")
    assert "It has a new certificate." in lines[1]
    assert fake.requests("ListDeviceEventsRequest")[0].page_size == 7


def happening(seconds: int, kind: str, message: str) -> device_pb2.StoredDeviceRecord:
    """Something that a device told of."""
    made = device_pb2.StoredDeviceRecord(position=seconds)
    made.record.time.FromSeconds(1_790_000_000 + seconds)
    made.record.happening.kind, made.record.happening.message = kind, message
    return made


def test_what_a_device_told_of_stands_among_its_events(fake: FakeServer, cli: Cli) -> None:
    enrolled = device_pb2.DeviceEvent(seq=1, kind="enrolled", message="Enrolled.", actor="ann")
    enrolled.time.FromSeconds(1_790_000_002)
    fake.replies["ListDeviceEventsRequest"] = device_pb2.ListDeviceEventsResponse(events=[enrolled])
    fake.replies["ListDeviceRecordsRequest"] = device_pb2.ListDeviceRecordsResponse(
        records=[happening(1, "boot", "It boots."), happening(3, "good", "shelf 2 is good.")]
    )
    lines = cli("devices", "events", "shop-17").stdout.splitlines()
    assert [row.split(maxsplit=2)[2].split()[0] for row in lines] == ["boot", "enrolled", "good"]
    assert lines[2].endswith("shelf 2 is good. (told by the device)")
    assert len(cli("devices", "events", "shop-17", "-n", "1").stdout.splitlines()) == 1
    asked = fake.requests("ListDeviceRecordsRequest")[0]
    assert asked.kind == device_pb2.DEVICE_RECORD_KIND_HAPPENING


def figure(seconds: int, name: str, value: float, of: str = "") -> device_pb2.StoredDeviceRecord:
    """A figure that a device told."""
    made = device_pb2.StoredDeviceRecord(position=seconds)
    made.record.time.FromSeconds(1_790_000_000 + seconds)
    made.record.figure.name, made.record.figure.value = name, value
    made.record.figure.deployment = of
    return made


def test_figures_are_shown_with_their_range_or_one_by_one(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeviceRecordsRequest"] = device_pb2.ListDeviceRecordsResponse(
        records=[
            figure(1, "agent_memory_bytes", 70 << 20),
            figure(2, "predictions", 12, SHELF),
            figure(3, "agent_memory_bytes", 90 << 20),
            figure(4, "agent_memory_bytes", 80 << 20),
        ]
    )
    heads, *rows = cli("devices", "metrics", "shop-17").stdout.splitlines()
    assert heads.split() == ["FIGURE", "OF", "NEWEST", "LOWEST", "HIGHEST", "TOLD"]
    assert rows[0].split()[:2] == ["agent_memory_bytes", "agent"]
    assert rows[0].split()[2:8] == ["80", "MiB", "70", "MiB", "90", "MiB"]
    assert rows[1].split()[:5] == ["predictions", "shelf", "12", "12", "12"]
    each = cli("devices", "metrics", "shop-17", "--figure", "agent_memory_bytes").stdout
    assert [row[-7:] for row in each.splitlines()] == [" 70 MiB", " 90 MiB", " 80 MiB"]
    asked = fake.requests("ListDeviceRecordsRequest")[0]
    assert (asked.kind, asked.limit) == (device_pb2.DEVICE_RECORD_KIND_FIGURE, 1000)


def missing(seconds: int, lost: int) -> device_pb2.StoredDeviceRecord:
    """So many records that never came, behind all others of a kind."""
    made = device_pb2.StoredDeviceRecord(position=seconds, lost=lost)
    made.record.time.FromSeconds(1_790_000_000 + seconds)
    return made


def test_figures_name_their_gaps(fake: FakeServer, cli: Cli) -> None:
    first, other, last = figure(1, "a", 1), figure(12, "b", 2), figure(13, "a", 3)
    other.lost, last.lost, first.trimmed = 4, 5, True
    fake.replies["ListDeviceRecordsRequest"] = device_pb2.ListDeviceRecordsResponse(
        records=[first, other, last, missing(20, 7)]
    )
    whole = cli("devices", "metrics", "shop-17")
    assert [row.split()[0] for row in whole.stdout.splitlines()] == ["FIGURE", "a", "b"]
    assert "16 records were dropped on the device among these" in whole.stderr
    each = cli("devices", "metrics", "shop-17", "--figure", "a")
    assert [row.split()[-1] for row in each.stdout.splitlines()] == ["1", "3"]
    assert [row.partition(": ")[2] for row in each.stderr.splitlines()] == [
        "what may have been before this is not kept any more",
        "9 records were dropped on the device here",
        "7 records were dropped on the device here",
    ]
    plain = cli("devices", "metrics", "shop-17", "--figure", "a", "-o", "json").stdout
    assert [json.loads(row).get("lost") for row in plain.splitlines()] == [None, "9", "7"]


def test_events_name_the_gaps_in_what_a_device_told(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeviceEventsRequest"] = device_pb2.ListDeviceEventsResponse()
    booted = happening(3, "boot", "It boots.")
    booted.lost = 1
    fake.replies["ListDeviceRecordsRequest"] = device_pb2.ListDeviceRecordsResponse(
        records=[booted, missing(9, 2)]
    )
    result = cli("devices", "events", "shop-17")
    assert len(result.stdout.splitlines()) == 1
    assert "1 record was dropped on the device here" in result.stderr
    assert "2 records were dropped on the device here" in result.stderr


def test_a_device_that_told_no_figures_is_said_to_have_none(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDeviceRecordsRequest"] = device_pb2.ListDeviceRecordsResponse()
    assert "It told no figures yet." in cli("devices", "metrics", "shop-17").stderr


# -- diagnose --------------------------------------------------------------------------------------


def test_a_device_that_is_well_is_diagnosed_so(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetDeviceRequest"] = device()
    result = cli("devices", "diagnose", "shop-17")
    assert result.exit_code == 0, result.output
    assert {row.split()[1] for row in result.stdout.splitlines()[1:]} == {"ok"}
    assert "generation 12, and it has done all of it" in result.stdout


def test_a_diagnosis_says_what_to_do_and_exits_with_1(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetDeviceRequest"] = behind()
    fake.replies["ListDeviceLogsRequest"] = device_pb2.ListDeviceLogsResponse(
        lines=[line(1, lost=40), line(2, "a"), line(3, lost=2)]
    )
    fake.replies["ListDeviceEventsRequest"] = device_pb2.ListDeviceEventsResponse(
        events=[device_pb2.DeviceEvent(kind="cloned", message="Two machines show its key.")]
    )
    result = cli("devices", "diagnose", "shop-17")
    assert result.exit_code == Exit.FAILURE
    for words in (
        "away 3d00h",
        "look at its power, its network, its clock",
        "it needs 410 MiB of memory, there are 220 MiB Revision 2 runs.",
        "-> hatoba devices logs shop-17 --deployment shelf",
        "42 records were dropped",
        "Two machines show its key.",
        "-> hatoba devices revoke shop-17",
    ):
        assert words in result.stdout


def found(made: Device, what: str, now: float | None = None) -> Finding:
    """The finding of one kind."""
    (one,) = [one for one in findings(Seen(made), now) if one.what == what]
    return one


def test_a_device_that_never_said_its_version_never_came() -> None:
    made = device(away=60.0)
    made.agent = ""
    assert found(made, "link")[1:3] == ("BAD", "it was enrolled and never came")
    assert found(device(), "shelf").message == "revision 3 runs at 127.0.0.1:8080 of the device"


def test_what_may_be_wrong_with_a_device_has_words() -> None:
    made = device()
    end = made.certificate_expire_time.seconds
    assert found(made, "certificate").word == "ok"
    assert found(made, "certificate", end - DAY).word == "note"
    ended = found(made, "certificate", end + 1)
    assert (ended.word, "--name shop-17" in ended.remedy) == ("BAD", True)
    made.capacity.limits_memory, made.report.disk_bytes = False, 100 << 20
    assert "--allow-unenforced-limits" in found(made, "memory").remedy
    assert found(made, "disk").word == "note"
    made.report.problems.append("its journal was damaged")
    assert found(made, "problem") == ("problem", "BAD", "its journal was damaged", "")
    made.state, made.connected = device_pb2.DEVICE_STATE_LEAVING, False
    assert "hatoba devices decommission shop-17 --force" in found(made, "state").remedy
    made.state = device_pb2.DEVICE_STATE_REVOKED
    assert found(made, "state").word == "BAD"


def test_slots_that_do_not_run_are_told_by_how_bad_they_are() -> None:
    made = device()
    slot = made.report.slots[0]
    slot.phase, slot.running, slot.cause.message = device_pb2.SLOT_PHASE_FETCHING, 2, "It waits."
    assert found(made, "shelf")[1:3] == (
        "note",
        "revision 3 is fetching: It waits. Revision 2 runs.",
    )
    slot.running, slot.inconsistent, slot.phase = 0, True, device_pb2.SLOT_PHASE_BAD
    both = found(made, "shelf")
    assert both.word == "BAD"
    assert both.message.endswith("what was good before does not come up either.")
    slot.phase = device_pb2.SLOT_PHASE_GOOD
    assert found(made, "shelf")[1:3] == (
        "BAD",
        "revision 3 was good and fails now: It waits."
        " Nothing runs: what was good before does not come up either.",
    )
    made.desired.wants.add(deployment="projects/default/deployments/door", revision=1)
    assert "says nothing of it yet" in found(made, "door").message


# -- changing --------------------------------------------------------------------------------------


def test_labels_are_given_and_taken_and_the_others_stay(fake: FakeServer, cli: Cli) -> None:
    fake.replies["GetDeviceRequest"] = device()
    fake.replies["UpdateDeviceRequest"] = device()
    result = cli("devices", "label", "shop-17", "site=osaka", "ring-", "floor=2")
    assert result.exit_code == 0, result.output
    (asked,) = fake.requests("UpdateDeviceRequest")
    assert dict(asked.labels) == {"site": "osaka", "floor": "2"}
    assert (asked.etag, asked.allow_removal) == ("v7", False)


def removal() -> bytes:
    """What a server says of a device that would lose a deployment."""
    status = status_pb2.Status(code=9, message="shop-17 would lose shelf")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="WRONG_STATE"))
    remedy = "allow the removal: --allow-removal"
    status.details.add().Pack(
        error_details_pb2.Help(links=[error_details_pb2.Help.Link(description=remedy)])
    )
    data: bytes = status.SerializeToString()
    return data


def test_a_removal_that_nobody_confirmed_is_refused_with_its_remedy(
    fake: FakeServer, cli: Cli
) -> None:
    fake.replies["GetDeviceRequest"] = fake.replies["UpdateDeviceRequest"] = device()
    fake.refuse(
        "UpdateDeviceRequest",
        grpc.StatusCode.FAILED_PRECONDITION,
        "shop-17 would lose shelf",
        details=removal(),
    )
    result = cli("devices", "label", "shop-17", "site-")
    assert result.exit_code == Exit.FAILURE
    assert "shop-17 would lose shelf" in result.stderr
    assert "-> allow the removal: --allow-removal" in result.stderr
    assert cli("devices", "label", "shop-17", "site-", "--allow-removal").exit_code == 0
    assert fake.requests("UpdateDeviceRequest")[1].allow_removal


def test_revoke_and_decommission_ask_first(fake: FakeServer, cli: Cli) -> None:
    gone = device()
    gone.state = device_pb2.DEVICE_STATE_REVOKED
    fake.replies["RevokeDeviceRequest"] = gone
    fake.replies["DecommissionDeviceRequest"] = device(away=DAY)
    assert cli("devices", "revoke", "shop-17", input="n\n").exit_code == Exit.DETACHED
    assert cli("devices", "decommission", "shop-17", input="n\n").exit_code == Exit.DETACHED
    assert fake.asked == []
    revoked = cli("devices", "revoke", "shop-17", "--yes", "--reason", "stolen")
    assert "REVOKED" in revoked.stdout
    assert fake.requests("RevokeDeviceRequest")[0].reason == "stolen"
    leaving = cli("devices", "decommission", "devices/shop-17", input="y\n")
    assert "hatoba devices decommission shop-17 --force" in leaving.stderr
    forgot = cli("devices", "decommission", "shop-17", "--yes", "--force")
    assert forgot.stderr == "forgot shop-17\n"
    assert [one.force for one in fake.requests("DecommissionDeviceRequest")] == [False, True]


def three(fake: FakeServer) -> None:
    """Devices with a label, of which the second cannot be changed."""
    fake.replies["ListDevicesRequest"] = device_pb2.ListDevicesResponse(
        devices=[device(name) for name in ("a", "b", "c")]
    )
    for kind in ("Get", "Update", "Revoke", "Decommission"):
        fake.replies[f"{kind}DeviceRequest"] = device()


@pytest.mark.parametrize(
    ("words", "request_name", "question", "told"),
    [
        (
            ["label", "ring=canary"],
            "UpdateDeviceRequest",
            "change labels of 3 devices (a, b, c): ring=canary?",
            "ring=canary site=tokyo",
        ),
        (
            ["revoke", "--reason", "stolen"],
            "RevokeDeviceRequest",
            "refuse 3 devices (a, b, c) from now on?",
            "revoked",
        ),
        (
            ["decommission"],
            "DecommissionDeviceRequest",
            "have 3 devices (a, b, c) end all they run?",
            "leaving",
        ),
        (
            ["decommission", "--force"],
            "DecommissionDeviceRequest",
            "forget 3 devices (a, b, c) at once?",
            "forgotten",
        ),
    ],
)
def test_many_are_counted_asked_for_and_told_one_by_one(
    fake: FakeServer, cli: Cli, words: list[str], request_name: str, question: str, told: str
) -> None:
    three(fake)
    asked = cli("devices", *words, "--selector", "site=tokyo", input="n\n")
    assert (asked.exit_code, question in asked.stderr) == (Exit.DETACHED, True)
    assert fake.requests(request_name) == []
    result = cli("devices", *words, "--selector", "site=tokyo", "--yes")
    assert result.exit_code == 0, result.output
    assert sorted(result.stdout.splitlines()) == [f"{name}  {told}" for name in "abc"]
    assert "3 devices done, 0 failed" in result.stderr
    assert sorted(one.name for one in fake.requests(request_name)) == ["a", "b", "c"]
    (listed, _) = fake.requests("ListDevicesRequest")
    assert [say_requirement(one) for one in listed.selector] == ["site=tokyo"]


def test_one_that_fails_stops_no_other_and_shows_in_the_exit_code(
    fake: FakeServer, cli: Cli
) -> None:
    three(fake)
    fake.refuse("RevokeDeviceRequest", grpc.StatusCode.FAILED_PRECONDITION, "it is not ours")
    result = cli("devices", "revoke", "--selector", "site=tokyo", "--yes", "-o", "json")
    assert result.exit_code == Exit.FAILURE
    assert "  failed: it is not ours" in result.stderr
    assert "2 devices done, 1 failed" in result.stderr
    assert len([json.loads(row) for row in result.stdout.splitlines()]) == 2


def test_a_selector_of_nobody_is_told(fake: FakeServer, cli: Cli) -> None:
    result = cli("devices", "revoke", "--selector", "site=tokyo", "--yes")
    assert result.exit_code == Exit.NOT_FOUND
    assert "no device has these labels" in result.stderr


# -- what is said of devices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["zone=a,b", "zone in (a, b)"], "zone=a,b"),
        (["!zone=a", "zone!=a", "zone != a", "!zone in (a)"], "zone!=a"),
        (["ssd"], "ssd"),
        (["!ssd"], "!ssd"),
    ],
)
def test_a_requirement_may_be_written_in_more_than_one_way(texts: list[str], said: str) -> None:
    assert {say_requirement(parse_requirement(text)) for text in texts} == {said}
    assert parse_requirement(said) == parse_requirement(texts[0])


@pytest.mark.parametrize("text", ["zone!", "!zone!=a", "!!a", "zone in ()"])
def test_what_asks_nothing_or_both_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="asks nothing"):
        parse_requirement(text)


def test_groups_are_an_amount_then_labels_then_approval() -> None:
    group = parse_group("5%,ssd,ring in (a,b), approve")
    assert (group.percent, group.devices, group.approve) == (5, 0, True)
    assert [say_requirement(one) for one in group.require] == ["ssd", "ring=a,b"]
    assert parse_group("10").devices == 10
    assert parse_group("approve").approve


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no group of devices"),
        ("0", "names no amount"),
        ("101%", "names no amount"),
        ("ring=a,5%", "no group of devices"),
        ("approve,5%", "no group of devices"),
        ("5%,", "no group of devices"),
        ("ring=a,b", "'b' after 'ring=a' could be a value or a label"),
    ],
)
def test_a_group_that_could_mean_two_things_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words) as caught:
        parse_group(text)
    assert caught.value.remedy


# -- the SDK ---------------------------------------------------------------------------------------


def test_the_synchronous_client_keeps_devices(fake: FakeServer, tmp_path: Any) -> None:
    token = tmp_path / "sdk-token"
    token.write_text("t\n")
    fake.replies["GetDeviceRequest"] = device()
    fake.replies["ListDevicesRequest"] = device_pb2.ListDevicesResponse(devices=[device()])
    fake.replies["ListDeviceLogsRequest"] = device_pb2.ListDeviceLogsResponse(lines=[line(1, "a")])
    fake.replies["PlanDevicesRequest"] = device_pb2.DevicePlan(comes=2)
    with Client(fake.address, token_file=str(token)) as client:
        client.devices.token(uses=3, ttl=60)
        assert client.devices.get("shop-17").etag == "v7"
        assert [one.name for one in client.devices.list(["site=tokyo"])] == ["devices/shop-17"]
        assert [one.text for one in client.devices.logs("shop-17")] == ["a"]
        assert client.devices.plan("shelf", [job_pb2.LabelRequirement(key="a")]).comes == 2
        with pytest.raises(InvalidSpec, match="'lost' is no state"):
            client.devices.list(states=["lost"])
        assert list(client.devices.rollout("shelf", ["timed-out"])) == []
        assert list(client.devices.events("shop-17")) == []
        assert list(client.devices.happenings("shop-17")) == []
        assert list(client.devices.figures("shop-17")) == []
        client.devices.revoke("shop-17", "lost")
        client.devices.decommission("shop-17")
        with pytest.raises(InvalidSpec, match="'lost' is no stage"):
            client.devices.rollout("shelf", ["lost"])
        fake.refuse("UpdateDeviceRequest", grpc.StatusCode.FAILED_PRECONDITION, details=removal())
        with pytest.raises(FailedPrecondition) as caught:
            client.devices.label("shop-17", {"site": "osaka"})
        assert "--allow-removal" in caught.value.remedy
    (asked,) = fake.requests("ListRolloutDevicesRequest")
    assert list(asked.stages) == [device_pb2.DEVICE_STAGE_TIMED_OUT]


async def test_a_follower_asks_on_after_the_last_line_and_over_a_server_that_goes(
    fake: FakeServer, locate: Callable[[], Server]
) -> None:
    waits: list[float] = []

    def write(*lines: device_pb2.DeviceLog) -> None:
        fake.replies["ListDeviceLogsRequest"] = device_pb2.ListDeviceLogsResponse(lines=lines)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            fake.refuse("ListDeviceLogsRequest", grpc.StatusCode.UNAVAILABLE, times=5)
            write(line(7, "c"))

    read, timing = [], Timing(sleep, lambda: 1.0)
    async with (
        AsyncClient(locate=locate, timing=timing, tracer=Tracer(environ={})) as client,
        aclosing(client.devices.logs("shop-17", follow=True, tail=5)) as source,
    ):
        async for one in source:
            read.append(one.text)
            write(line(8, "d"))
            if one.text == "d":
                break
    assert read == ["c", "d"]
    asked = fake.requests("ListDeviceLogsRequest")
    assert (asked[0].limit, asked[0].after) == (5, 0)
    assert asked[-1].after == 7


def test_help_of_devices_loads_no_grpc() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from hatoba.cli.root import root;"
        "told = CliRunner().invoke(root, ['devices', 'add', '--help']);"
        "sys.exit(told.exit_code or 'grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
