"""Webhooks of a real server, with receivers that take, refuse, hang and die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from command_line import CommandLine, Done
from server_process import HatobaServer, configured, running_server
from waiting import PATIENCE, News, eventually
from wire import Wire

from hatoba.v1 import admin_pb2, job_pb2, webhook_pb2
from hatoba.webhooks import BadSignature, verify
from tests.integration.services.conftest import refused, spec, submit, token_of


class Receiver:
    """Takes what is posted; `status` is what it answers, and while `hanging` is set, nothing."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.hanging = False
        self.port = 0
        self.news = News()
        self._over = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_port=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self._over.set()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None
        self._over.clear()

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        self.news.tell()
        if self.hanging:
            await self._over.wait()
        return web.Response(status=self.status)

    async def until(self, count: int) -> None:
        """Wait for so many deliveries in all."""
        await self.news.until(lambda: len(self.got) >= count)

    def events(self) -> list[dict[str, Any]]:
        """The events, each once, in the order of their first coming."""
        found: dict[str, dict[str, Any]] = {}
        for headers, body in self.got:
            whole = json.loads(body)
            if "event" in whole:
                found.setdefault(headers["hatoba-delivery"], whole)
        return [whole["event"] for whole in found.values()]

    def seqs(self) -> list[int]:
        return [int(event["seq"]) for event in self.events()]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    one = Receiver()
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


async def hooked(
    wire: Wire, project: str, url: str, name: str = "ci", **settings: Any
) -> webhook_pb2.CreateWebhookResponse:
    request = webhook_pb2.CreateWebhookRequest(
        project=project, webhook_id=name, webhook=webhook_pb2.Webhook(url=url, **settings)
    )
    return await wire.once(request, webhook_pb2.CreateWebhookResponse)


async def looked_at(wire: Wire, name: str) -> webhook_pb2.Webhook:
    return await wire.once(webhook_pb2.GetWebhookRequest(name=name), webhook_pb2.Webhook)


async def updated(wire: Wire, name: str, **values: Any) -> webhook_pb2.Webhook:
    request = webhook_pb2.UpdateWebhookRequest(webhook=webhook_pb2.Webhook(name=name, **values))
    request.update_mask.paths.extend(values)
    return await wire.once(request, webhook_pb2.Webhook)


async def history(wire: Wire, job: job_pb2.Job) -> list[int]:
    """Positions of all events of a job that ended."""
    request = job_pb2.WatchJobsRequest(jobs=[job.name], cursor="0")
    async with asyncio.timeout(PATIENCE):
        return [
            message.event.seq
            async for message in wire.stream(request, job_pb2.WatchJobsResponse)
            if message.HasField("event")
        ]


async def told_to_another(wire: Wire, project: str) -> list[int]:
    """All events of a job, once another receiver of the project has them."""
    async with receiving() as witness:
        await hooked(wire, project, witness.url, "witness")
        expected = await history(wire, await submit(wire, spec("a", backend="null"), project))
        await witness.until(len(expected))
        assert witness.seqs() == expected
    return expected


async def test_events_come_in_order_signed_and_with_their_job(
    wire: Wire, project: str, receiver: Receiver
) -> None:
    made = await hooked(wire, project, receiver.url)
    job = await submit(wire, spec("train", backend="null"), project)
    expected = await history(wire, job)
    await receiver.until(len(expected))
    assert receiver.seqs() == expected
    for headers, body in receiver.got:
        verify(body, headers["hatoba-signature"], made.signing_key)
        with pytest.raises(BadSignature):
            verify(body + b" ", headers["hatoba-signature"], made.signing_key)
    first = json.loads(receiver.got[0][1])
    assert first["webhook"] == made.webhook.name
    assert first["delivery"] == receiver.got[0][0]["hatoba-delivery"]
    assert first["event"]["reason"] == "submit"
    assert first["event"]["job"] == first["job"]["name"] == job.name
    assert "spec" not in first["job"]
    assert json.loads(receiver.got[-1][1])["job"]["state"] == "SUCCEEDED"


async def test_filters_choose_on_the_server(wire: Wire, project: str, receiver: Receiver) -> None:
    await hooked(wire, project, receiver.url, filter="name = wanted", reasons=["end"])
    for name in ("other", "wanted", "other", "wanted"):
        await history(wire, await submit(wire, spec(name, backend="null"), project))
    await receiver.until(2)
    assert [event["reason"] for event in receiver.events()] == ["end", "end"]
    assert [event["job"].split("/")[-1] for event in receiver.events()] == ["wanted-1", "wanted-2"]


async def test_a_receiver_that_refuses_gets_it_again_before_anything_else(
    wire: Wire, project: str, receiver: Receiver
) -> None:
    receiver.status = 500
    made = await hooked(wire, project, receiver.url)
    expected = await history(wire, await submit(wire, spec("a", backend="null"), project))
    await receiver.until(2)
    known = await looked_at(wire, made.webhook.name)
    assert known.failures >= 1
    assert known.last_error == "the receiver answered 500"
    assert known.next_try_time.seconds > 0
    receiver.status = 204
    await receiver.until(2 + len(expected))
    assert len({headers["hatoba-delivery"] for headers, _ in receiver.got[:3]}) == 1
    assert receiver.seqs() == expected
    known = await looked_at(wire, made.webhook.name)
    assert (known.failures, known.last_error, known.given_up) == (0, "", 0)


async def test_redirects_are_not_followed(wire: Wire, project: str, receiver: Receiver) -> None:
    receiver.status = 302
    made = await hooked(wire, project, receiver.url)
    await submit(wire, spec("a", backend="null"), project)
    await receiver.until(2)
    assert (await looked_at(wire, made.webhook.name)).last_error == "the receiver answered 302"


async def test_one_that_hangs_delays_nobody(wire: Wire, project: str, receiver: Receiver) -> None:
    async with receiving() as stuck:
        stuck.hanging = True
        for number in range(5):
            await hooked(wire, project, stuck.url, f"stuck-{number}")
        await hooked(wire, project, receiver.url)
        expected = await history(wire, await submit(wire, spec("a", backend="null"), project))
        await stuck.until(5)
        async with asyncio.timeout(5):
            await receiver.until(len(expected))
        assert receiver.seqs() == expected
        assert len(stuck.got) == 5


async def test_a_paused_one_goes_on_where_it_was(
    wire: Wire, project: str, receiver: Receiver
) -> None:
    made = await hooked(wire, project, receiver.url, paused=True)
    expected = await told_to_another(wire, project)
    assert receiver.got == []
    assert not (await updated(wire, made.webhook.name, paused=False)).paused
    await receiver.until(len(expected))
    assert receiver.seqs() == expected


async def test_an_update_is_tried_at_once(wire: Wire, project: str, receiver: Receiver) -> None:
    made = await hooked(wire, project, "http://127.0.0.1:1/nobody")
    expected = await history(wire, await submit(wire, spec("a", backend="null"), project))

    async def failing() -> bool:
        return (await looked_at(wire, made.webhook.name)).failures >= 3

    await eventually(failing)
    await updated(wire, made.webhook.name, url=receiver.url)
    async with asyncio.timeout(3):
        await receiver.until(len(expected))
    assert receiver.seqs() == expected


@pytest.mark.timeout(120)
async def test_kills_of_receiver_and_server_leave_no_gap(
    own_server: HatobaServer, own_wire: Wire, project: str, receiver: Receiver
) -> None:
    await hooked(own_wire, project, receiver.url)
    expected: list[int] = []
    for round_ in range(3):
        jobs = [
            await submit(own_wire, spec(f"a{round_}", backend="null"), project) for _ in range(20)
        ]
        await receiver.until(len(expected) + 5)
        await receiver.stop()
        await own_server.restart()
        await receiver.start()
        for job in jobs:
            expected += await history(own_wire, job)
    expected.sort()
    await receiver.news.until(lambda: receiver.seqs() == expected, patience=60)


async def test_the_key_is_shown_once(wire: Wire, project: str, receiver: Receiver) -> None:
    made = await hooked(wire, project, receiver.url)
    assert len(made.signing_key) == 64
    one = await looked_at(wire, made.webhook.name)
    every = await wire.once(
        webhook_pb2.ListWebhooksRequest(project=project), webhook_pb2.ListWebhooksResponse
    )
    assert list(every.webhooks) == [one]
    assert made.signing_key not in f"{one}{every}"


async def test_a_test_message(wire: Wire, project: str, receiver: Receiver) -> None:
    made = await hooked(wire, project, receiver.url)
    ask = webhook_pb2.TestWebhookRequest(name=made.webhook.name)
    assert (await wire.once(ask, webhook_pb2.TestWebhookResponse)).status == 200
    headers, body = receiver.got[0]
    verify(body, headers["hatoba-signature"], made.signing_key)
    assert json.loads(body)["test"] is True
    await receiver.stop()
    answer = await wire.once(ask, webhook_pb2.TestWebhookResponse)
    assert answer.status == 0
    assert "Cannot connect" in answer.error


async def test_deleting_is_once(wire: Wire, project: str, receiver: Receiver) -> None:
    made = await hooked(wire, project, receiver.url)
    for _ in range(2):
        end = webhook_pb2.DeleteWebhookRequest(name=made.webhook.name)
        await wire.once(end, webhook_pb2.DeleteWebhookResponse)
    await told_to_another(wire, project)
    assert receiver.got == []
    gone = await refused(looked_at(wire, made.webhook.name))
    assert gone.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"url": ""}, "webhook.url", "must begin with http"),
        ({"url": "file:///etc/passwd"}, "webhook.url", "must begin with http"),
        ({"url": "gopher://a.example/x"}, "webhook.url", "must begin with http"),
        ({"url": "http://"}, "webhook.url", "names no host"),
        ({"url": "http://a.example:99999/"}, "webhook.url", "no address"),
        ({"url": "http://user:pass@a.example/"}, "webhook.url", "user or password"),
        ({"url": "http://169.254.169.254/latest"}, "webhook.url", "link-local"),
        ({"url": "http://[fe80::1]/"}, "webhook.url", "link-local"),
        ({"url": "http://a.example", "filter": "colour = red"}, "webhook.filter", "colour"),
        ({"url": "http://a.example", "filter": "active = true"}, "webhook.filter", "active"),
        ({"url": "http://a.example", "reasons": ["lanch"]}, "webhook.reasons", "launch"),
        ({"url": "http://a.example", "reasons": [""]}, "webhook.reasons[0]", ""),
        ({"url": "http://a.example/" + "x" * 3000}, "webhook.url", "2048"),
    ],
)
async def test_bad_settings(
    wire: Wire, project: str, settings: dict[str, Any], field: str, words: str
) -> None:
    found = await refused(hooked(wire, project, **settings))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == [field]
    assert words in found.message


async def test_bad_names_and_masks(wire: Wire, project: str) -> None:
    await hooked(wire, project, "http://a.example")
    again = await refused(hooked(wire, project, "http://b.example"))
    assert again.code is grpc.StatusCode.ALREADY_EXISTS
    for name in ("", "a b", "projects/x/queues/y", "projects//webhooks/y"):
        found = await refused(looked_at(wire, name))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    nobody = await refused(looked_at(wire, f"projects/{project}/webhooks/nobody"))
    assert nobody.code is grpc.StatusCode.NOT_FOUND
    name = f"projects/{project}/webhooks/ci"
    for masked in ({}, {"created_by": "me"}):
        found = await refused(updated(wire, name, **masked))
        assert found.fields in (["update_mask"], ["update_mask", "update_mask"])
    bad = await refused(updated(wire, name, url="ftp://a"))
    assert bad.fields == ["webhook.url"]
    assert (await looked_at(wire, name)).url == "http://a.example"


async def test_only_administrators_make_them(
    server: HatobaServer, wire: Wire, project: str
) -> None:
    user = await token_of(wire, admin_pb2.ROLE_USER)
    async with Wire(server, token=user.secret) as theirs:
        found = await refused(hooked(theirs, project, "http://a.example"))
        assert found.code is grpc.StatusCode.PERMISSION_DENIED


async def test_only_allowed_hosts(tmp_path: Path) -> None:
    config = '[webhooks]\nallow = ["*.example.org", "127.0.0.1"]\n[backends.null]\ntype = "null"\n'
    data = await asyncio.to_thread(configured, tmp_path / "data", config)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        await hooked(wire, "default", "https://a.example.org/x", "good")
        await hooked(wire, "default", "http://127.0.0.1:9/x", "here")
        found = await refused(hooked(wire, "default", "https://example.com/x"))
        assert "[webhooks] allow" in found.message


async def test_the_commands(server: HatobaServer, receiver: Receiver, tmp_path: Path) -> None:
    async def run(*arguments: str) -> Done:
        return await cli("webhooks", *arguments)

    cli = CommandLine(server, tmp_path)
    code, key, said = await run("create", "ci", receiver.url, "--reason", "end", "--jobs-only")
    assert (code, len(key.strip())) == (0, 64), said
    assert "shown once" in said
    code, listed, said = await run("list")
    assert receiver.url in listed, said
    assert "good" in listed
    assert "answered 200" in (await run("test", "ci"))[2]
    assert "is paused" in (await run("pause", "ci"))[2]
    shown = (await run("get", "ci"))[1]
    assert "paused" in shown
    assert "jobs only; reasons end" in shown
    assert "goes on" in (await run("pause", "ci", "--resume"))[2]
    receiver.status = 500
    code, _, said = await run("test", "ci")
    assert (code, "answered 500" in said) == (1, True)
    assert (await run("delete", "ci"))[0] == 0
    assert "no webhooks" in "".join((await run("list"))[1:])
