"""The kit's proxy before a small component that counts what reaches it."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from waiting import until

from hatoba_plugins.conformance.proxy import Aws, Call, Docker, FaultProxy, Kubernetes
from hatoba_scheduler.certificates import SERVER, Holder, Pair, authority, signed, write_pair


class Component:
    """Makes things once each, lists their names by pages of its own size, streams numbers."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.limits: list[str] = []
        self.pause = 0.0

    async def create(self, request: web.Request) -> web.Response:
        name = (await request.json())["metadata"]["name"]
        self.made[name] += 1
        await asyncio.sleep(self.pause)
        return web.json_response({"name": name}, status=201)

    async def listing(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self.watching(request)
        self.limits.append(request.query.get("limit", ""))
        return web.json_response({"items": sorted(self.made)})

    async def watching(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(1000):
            await response.write(f"{number}\n".encode())
            await asyncio.sleep(0.01)
        return response

    @asynccontextmanager
    async def serving(
        self, at: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[str]:
        """Where it listens."""
        app = web.Application()
        app.router.add_post("/apis/batch/v1/namespaces/ml/jobs", self.create)
        app.router.add_get("/apis/batch/v1/namespaces/ml/jobs", self.listing)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            if at.startswith("unix://"):
                await web.UnixSite(runner, at.removeprefix("unix://")).start()
                yield at
            else:
                await web.TCPSite(runner, at, 0, ssl_context=tls).start()
                yield f"{'https' if tls else 'http'}://{at}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class Client:
    """What a backend would use."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self.jobs = f"{endpoint}/apis/batch/v1/namespaces/ml/jobs"

    async def create(self, name: str) -> int:
        """The status that is answered."""
        body = {"metadata": {"name": name}}
        async with self._session.post(self.jobs, json=body) as reply:
            await reply.read()
            return reply.status

    async def ask(self, **query: str) -> tuple[int, str, str]:
        """Status, text and Retry-After of a listing."""
        async with self._session.get(self.jobs, params=query) as reply:
            return reply.status, await reply.text(), reply.headers.get("Retry-After", "")

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[aiohttp.StreamReader]:
        """A stream, of which the first line has come."""
        async with self._session.get(self.jobs, params={"watch": "true"}) as reply:
            await reply.content.readline()
            yield reply.content


class House:
    """The component, the proxy and a client."""

    def __init__(self, component: Component, proxy: FaultProxy, client: Client) -> None:
        self.component = component
        self.proxy = proxy
        self.client = client


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        component = Component()
        upstream = await stack.enter_async_context(component.serving())
        running = FaultProxy.running(upstream, Kubernetes())
        proxy = await stack.enter_async_context(running)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield House(component, proxy, Client(session, proxy.endpoint))


# -- one call --------------------------------------------------------------------------------------


async def test_what_is_not_broken_passes_and_is_counted(house: House) -> None:
    assert await house.client.create("a") == 201
    assert (await house.client.ask())[1] == json.dumps({"items": ["a"]})
    assert house.proxy.counts == {"create jobs": 1, "list jobs": 1}


async def test_a_lost_reply_took_effect(house: House) -> None:
    house.proxy.lose_reply("create jobs")
    with pytest.raises(aiohttp.ClientError):
        await house.client.create("a")
    assert house.component.made == {"a": 1}
    assert await house.client.create("b") == 201


async def test_a_delayed_reply_took_effect_before_and_stays_when_nobody_waits(
    house: House,
) -> None:
    house.proxy.delay_reply("create jobs", 1000.0)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(house.client.create("a"))
        await until(lambda: house.component.made["a"])
        assert not call.done()
        call.cancel()
    assert house.component.made == {"a": 1}


async def test_a_doubled_call_arrives_twice_and_is_answered_once(house: House) -> None:
    house.proxy.double("create jobs")
    assert await house.client.create("a") == 201
    assert house.component.made == {"a": 2}
    assert house.proxy.counts["create jobs"] == 1


async def test_a_doubled_call_is_doubled_for_who_gave_up_meanwhile(house: House) -> None:
    house.component.pause = 0.2
    house.proxy.double("create jobs")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(house.client.create("a"))
        await house.proxy.met.wait()
        call.cancel()
    await until(lambda: house.component.made["a"] == 2)


async def test_what_lands_late_does_so_without_its_caller(house: House) -> None:
    house.proxy.land_late("create jobs", 0.2)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(house.client.create("a"))
        await house.proxy.met.wait()
        call.cancel()
    assert not house.component.made
    await until(lambda: house.component.made["a"])


async def test_what_hangs_has_no_effect_and_others_pass(house: House) -> None:
    house.proxy.hang("create jobs")
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(house.client.create("a"))
        await house.proxy.met.wait()
        assert (await house.client.ask())[0] == 200
        call.cancel()
    assert not house.component.made


async def test_a_call_can_arrive_changed(house: House) -> None:
    house.proxy.change("create jobs", lambda told: {**told, "metadata": {"name": "other"}})
    assert await house.client.create("a") == 201
    assert house.component.made == {"other": 1}


async def test_refusals_are_the_components_own_and_have_no_effect(house: House) -> None:
    house.proxy.throttle("list jobs", after=7)
    house.proxy.overload("list jobs", after=8)
    house.proxy.disguise_denial("list jobs")
    house.proxy.babble("list jobs")
    answers = [await house.client.ask() for _ in range(5)]
    assert [(status, after) for status, _, after in answers] == [
        (429, "7"),
        (503, "8"),
        (404, ""),
        (200, ""),
        (200, ""),
    ]
    assert json.loads(answers[0][1])["reason"] == "TooManyRequests"
    for _, text, _ in answers[2:4]:
        with pytest.raises(ValueError, match="line 1 column"):
            json.loads(text)


async def test_only_a_further_page_expires(house: House) -> None:
    house.proxy.expire_page("list jobs")
    assert (await house.client.ask())[0] == 200
    assert not house.proxy.met.is_set()
    assert (await house.client.ask(**{"continue": "x"}))[0] == 410
    assert house.proxy.met.is_set()
    assert (await house.client.ask(**{"continue": "x"}))[0] == 200


async def test_listings_can_be_made_to_have_pages(house: House) -> None:
    house.proxy.page_size = 2
    await house.client.ask(limit="250")
    await house.client.create("a")
    assert house.component.limits == ["2"]


# -- all of them -----------------------------------------------------------------------------------


async def test_a_cut_ends_every_connection_and_silence_answers_nobody(house: House) -> None:
    house.proxy.cut = True
    with pytest.raises(aiohttp.ClientError):
        await house.client.ask()
    house.proxy.cut, house.proxy.silent = False, True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await house.client.ask()
    house.proxy.silent = False
    assert (await house.client.ask())[0] == 200


async def test_a_reply_can_be_rewritten(house: House) -> None:
    async def hide(
        proxy: FaultProxy, operation: str, asked: dict[str, object], told: dict[str, object]
    ) -> None:
        told["items"] = [operation]

    house.proxy.rewrite.append(hide)
    assert json.loads((await house.client.ask())[1]) == {"items": ["list jobs"]}


# -- streams ---------------------------------------------------------------------------------------


async def test_streams_pass_end_break_and_freeze(house: House) -> None:
    async with house.client.watch() as stream:
        assert (await stream.readline()).strip() == b"1"
        house.proxy.end_streams()
        await stream.read()
        assert stream.at_eof()
    async with house.client.watch() as stream:
        house.proxy.break_streams()
        with pytest.raises(aiohttp.ClientError):
            await stream.read()
    async with house.client.watch() as stream:
        house.proxy.freeze_streams()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await stream.read()
        assert house.proxy.streaming["watch jobs"] == 1
    await until(lambda: not house.proxy.streaming["watch jobs"])
    assert house.proxy.most_streaming == {"watch jobs": 1}


# -- transports ------------------------------------------------------------------------------------


async def test_sockets_of_this_machine(tmp_path: Path) -> None:
    component = Component()
    there, here = f"unix://{tmp_path}/component.sock", f"unix://{tmp_path}/proxy.sock"
    async with (
        component.serving(there),
        FaultProxy.running(there, Kubernetes(), at=here) as proxy,
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(proxy.endpoint.removeprefix("unix://"))
        ) as session,
    ):
        assert await Client(session, "http://component").create("a") == 201
    assert component.made == {"a": 1}


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For who serves on loopback, and for who asks there."""
    now = dt.datetime.now(dt.UTC)
    issuer, key = authority(directory, now), ec.generate_private_key(ec.SECP256R1())
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    holder = Holder("component", key.public_key(), names, SERVER)
    made = Pair(signed(issuer, holder, now, dt.timedelta(hours=1)), key)
    write_pair(made, directory / "made.pem", directory / "made.key")
    serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serves.load_cert_chain(directory / "made.pem", directory / "made.key")
    return serves, ssl.create_default_context(cafile=directory / "ca.pem")


async def test_tls_on_both_sides(tmp_path: Path) -> None:
    serves, trusts = await asyncio.to_thread(contexts, tmp_path)
    component = Component()
    async with (
        component.serving(tls=serves) as upstream,
        FaultProxy.running(upstream, Kubernetes(), trust=trusts, serve=serves) as proxy,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusts)) as session,
    ):
        assert proxy.endpoint.startswith("https://")
        assert await Client(session, proxy.endpoint).create("a") == 201
    assert component.made == {"a": 1}


# -- dialects --------------------------------------------------------------------------------------

AWS_TARGET = {"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.RunTask"}


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (Call("POST", "/v1/submitjob"), "submitjob"),
        (Call("POST", "/", AWS_TARGET), "runtask"),
        (Call("GET", "/v1/tags/arn%3Aaws%3Abatch%3Ax%2Fy"), "tags"),
    ],
)
def test_calls_of_aws(call: Call, operation: str) -> None:
    assert Aws().operation(call) == operation


JOBS = "/apis/batch/v1/namespaces/ml/jobs"
PODS = "/api/v1/namespaces/ml/pods"


@pytest.mark.parametrize(
    ("call", "operation", "streams"),
    [
        (Call("POST", JOBS), "create jobs", False),
        (Call("GET", f"{JOBS}?limit=1"), "list jobs", False),
        (Call("GET", f"{JOBS}/a"), "get jobs", False),
        (Call("PATCH", f"{JOBS}/a"), "patch jobs", False),
        (Call("DELETE", f"{PODS}/a"), "delete pods", False),
        (Call("GET", f"{PODS}?watch=true"), "watch pods", True),
        (Call("GET", f"{PODS}/a/log?follow=true"), "follow log", True),
        (Call("GET", f"{PODS}/a/log"), "get log", False),
        (Call("GET", "/api/v1/nodes"), "list nodes", False),
        (Call("GET", "/api/v1/namespaces/ml"), "list ml", False),
    ],
)
def test_calls_of_kubernetes(call: Call, operation: str, streams: bool) -> None:
    assert Kubernetes().operation(call) == operation
    assert Kubernetes().streams(call) is streams


@pytest.mark.parametrize(
    ("call", "operation", "streams"),
    [
        (Call("POST", "/v1.43/containers/create?name=a"), "create containers", False),
        (Call("POST", "/containers/a/start"), "start containers", False),
        (Call("POST", "/v1.43/containers/a/wait"), "wait containers", True),
        (Call("GET", "/v1.43/containers/json?all=1"), "list containers", False),
        (Call("GET", "/v1.43/containers/a/json"), "get containers", False),
        (Call("DELETE", "/v1.43/containers/a?force=1"), "delete containers", False),
        (Call("GET", "/v1.43/events"), "get events", True),
        (Call("GET", "/v1.43/containers/a/logs?follow=1"), "logs containers", True),
        (Call("POST", "/v1.43/images/create?fromImage=x"), "create images", True),
        (Call("GET", "/_ping"), "get _ping", False),
    ],
)
def test_calls_of_docker(call: Call, operation: str, streams: bool) -> None:
    assert Docker().operation(call) == operation
    assert Docker().streams(call) is streams


def test_pages_of_aws() -> None:
    first, second = Call("POST", "/v1/listjobs", body=b"{}"), b'{"nextToken": "x"}'
    assert not Aws().turns_page(first)
    assert Aws().turns_page(Call("POST", "/v1/listjobs", body=second))
    assert json.loads(Aws().in_pages_of(first, 3).body) == {"maxResults": 3}
    submit = Call("POST", "/v1/submitjob", body=b"{}")
    assert Aws().in_pages_of(submit, 3) is submit
