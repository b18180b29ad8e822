"""Two machines that share no disk, a server and a router apart from them, TLS between them all."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import netns
import pytest
from joining import Machine, connected, join_token, machine
from router_house import answers
from server_process import HatobaServer, clean_environment, configured, running_server
from serving_house import Tally, asking, deployed, registered
from waiting import eventually
from wire import Wire, shell

from hatoba.router_port import router_address
from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2
from hatoba_worker import key_files, keys

pytestmark = [
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not()),
    pytest.mark.timeout(300),
]
CONFIG = """
[server]
listen = "{address}:0"
"""
HOSTS = ("east", "west")
READY = deployment_pb2.REPLICA_STATE_READY


@pytest.fixture
def network() -> Iterator[netns.Network]:
    """This machine and two others at a switch."""
    with netns.network(len(HOSTS)) as made:
        yield made


@dataclass
class Site:
    """A server with a router, and two hosts that joined it."""

    server: HatobaServer
    wire: Wire
    machines: dict[str, Machine]
    addresses: dict[str, str]
    authority: bytes


@pytest.fixture
async def site(network: netns.Network, tmp_path: Path) -> AsyncIterator[Site]:
    """All of them at work."""
    config = CONFIG.format(address=network.address)
    data = await asyncio.to_thread(configured, tmp_path / "server", config)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(data, worker=False))
        authority = await asyncio.to_thread(Path(server.ready["ca_file"]).read_bytes)
        credentials = grpc.ssl_channel_credentials(authority)
        wire = await stack.enter_async_context(Wire(server, credentials=credentials))
        router = await stack.enter_async_context(_router(server, tmp_path / "router"))
        server.ready["router"] = router
        made = Site(server, wire, {}, {}, authority)
        for name, place in zip(HOSTS, network.machines, strict=True):
            others = [data, *(one.data for one in made.machines.values())]
            within = place.within(*others)
            one = await stack.enter_async_context(machine(tmp_path / name, within))
            await asyncio.to_thread(one.data.mkdir)
            secret = (await join_token(wire, name)).secret
            await asyncio.to_thread(one.start, "--server", server.address, "--join", secret)
            await connected(wire, name)
            made.machines[name], made.addresses[name] = one, place.address
        yield made


@asynccontextmanager
async def _router(server: HatobaServer, data: Path) -> AsyncIterator[str]:
    """A router of its own directory, as on a machine of its own; where it answers."""
    await asyncio.to_thread(data.mkdir)
    listen = await asyncio.to_thread(router_address, data)
    token = await asyncio.to_thread(server.token, "router")
    await asyncio.to_thread((data / "router.token").write_text, token)
    where = ["--data", str(data), "--server", server.address, "--ca-file", server.ready["ca_file"]]
    log = await asyncio.to_thread((data / "router.log").open, "ab")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hatoba_worker.router", *where),
        env=clean_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    log.close()
    try:
        async with aiohttp.ClientSession() as session:
            await answers(session, f"http://{listen}")
        yield listen
    finally:
        process.terminate()
        await process.wait()


async def replicas(wire: Wire) -> list[deployment_pb2.Replica]:
    """Those of the deployment that are ready."""
    request = deployment_pb2.GetDeploymentRequest(name="reader")
    found = await wire.call(request, deployment_pb2.Deployment)
    return [one for one in found.replicas if one.state == READY]


async def spread(wire: Wire, wanted: dict[str, int]) -> list[deployment_pb2.Replica]:
    """The ready replicas, once so many are on each host."""

    async def as_wanted() -> list[deployment_pb2.Replica] | None:
        found = await replicas(wire)
        return found if Counter(one.host for one in found) == wanted else None

    return await eventually(as_wanted, 90)


async def answered(tally: Tally, more: int) -> None:
    """Wait until so many more requests were answered."""
    goal = tally.answered + more
    await tally.news.until(lambda: tally.answered >= goal, 90)


async def drain(wire: Wire, host: str) -> None:
    request = worker_pb2.CordonHostRequest(name=host, cordoned=True, drain=True)
    assert (await wire.once(request, worker_pb2.Host)).draining


async def test_a_deployment_over_two_machines_of_which_one_is_drained(
    site: Site, tmp_path: Path
) -> None:
    version = await registered(site.wire, tmp_path, python=sys.executable)
    wanted = deployment_pb2.DeploymentSpec(model=version.name, replicas=2)
    wanted.strategy.bake.FromSeconds(1)
    wanted.strategy.ready_deadline.FromSeconds(60)
    await deployed(site.wire, wanted)
    over_both = await spread(site.wire, {"east": 1, "west": 1})
    for one in over_both:
        assert one.address.startswith(f"{site.addresses[one.host]}:")
        assert one.secure
    async with asking(site.server, 8) as tally:
        await answered(tally, 200)
        await drain(site.wire, "east")
        await spread(site.wire, {"west": 2})
        await answered(tally, 200)
        await site.wire.once(worker_pb2.CordonHostRequest(name="east"), worker_pb2.Host)
        await drain(site.wire, "west")
        await spread(site.wire, {"east": 2})
        await answered(tally, 200)
    assert tally.failures == []
    print(f"{tally.answered} answered, longest {tally.longest * 1e3:.0f} ms")
    # Nothing is left on it, so that it may go.
    removing = worker_pb2.RemoveHostRequest(name="west")
    await eventually(
        lambda: site.wire.once(removing, worker_pb2.Host), despite=(grpc.aio.AioRpcError,)
    )
    await _only_who_may_asks(site, (await replicas(site.wire))[0], tmp_path)


async def _only_who_may_asks(site: Site, replica: deployment_pb2.Replica, home: Path) -> None:
    """At the replica's own port: no plain text, no stranger, no other host."""
    plain = await _status(f"http://{replica.address}/readyz", None)
    assert isinstance(plain, aiohttp.ClientError), plain
    stranger = ssl.create_default_context(cadata=site.authority.decode())
    unknown = await _status(f"https://{replica.address}/readyz", stranger, replica.host)
    assert isinstance(unknown, aiohttp.ClientError), unknown
    west = keys.client_context(key_files.directory(site.machines["west"].data), keys.HOST)
    other = await _status(f"https://{replica.address}/readyz", west, replica.host)
    assert other == 403, other
    east = keys.client_context(key_files.directory(site.machines["east"].data), keys.HOST)
    assert await _status(f"https://{replica.address}/readyz", east, replica.host) == 200


async def _status(url: str, context: ssl.SSLContext | None, host: str = "") -> Any:
    """The status of a reply, or the error in its place."""
    name = f"{host}.hosts.hatoba" if host else None
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(
                url, ssl=context if context is not None else True, server_hostname=name
            ) as reply:
                return reply.status
        except aiohttp.ClientError as error:
            return error


async def test_a_worker_is_upgraded_under_a_job(site: Site) -> None:
    job = await site.wire.submit(shell("touch $HATOBA_DIR/begun; sleep 5; echo through"))
    await site.wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    (before,) = await site.wire.attempts(job.name)
    upgraded = site.machines[before.host]
    site_packages = await asyncio.to_thread(_newer, upgraded.data.parent / "site")
    await upgraded.stop()
    upgraded.environ["PYTHONPATH"] = str(site_packages)
    await asyncio.to_thread(upgraded.start)
    assert (await connected(site.wire, before.host)).version == "9.9.9"
    ended = await site.wire.ended(job.name)
    assert ended.state == common_pb2.JOB_STATE_SUCCEEDED
    assert await site.wire.log(job.name) == b"through\n"
    (after,) = await site.wire.attempts(job.name)
    assert (after.number, after.host) == (before.number, before.host)


def _newer(folder: Path) -> Path:
    """What a newer version of the distribution leaves, as far as a worker tells of itself."""
    info = folder / "hatoba-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hatoba\nVersion: 9.9.9\n")
    commands = metadata.distribution("hatoba").read_text("entry_points.txt") or ""
    (info / "entry_points.txt").write_text(commands)
    return folder


async def test_who_is_between_machine_and_server_gets_no_token(
    site: Site, network: netns.Network, tmp_path: Path
) -> None:
    """The line names the server's own authority: another server is not spoken to."""
    other = await asyncio.to_thread(
        configured, tmp_path / "other", CONFIG.format(address=network.address)
    )
    async with running_server(other, worker=False) as impostor:
        secret = (await join_token(site.wire, "north")).secret
        async with machine(tmp_path / "north") as one:
            said = await asyncio.to_thread(
                one.refused, "--server", impostor.address, "--join", secret
            )
            assert "is not the server that made this token" in said
        assert "JoinHost" not in impostor.log_text()


def test_the_machines_share_no_disk(network: netns.Network, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").touch()
    listing = [*network.machines[0].within(tmp_path / "secret"), "ls", str(tmp_path / "secret")]
    assert subprocess.run(listing, check=True, capture_output=True).stdout == b""
