"""How a device reaches a registry: mirrors, authorities and credentials of its own settings."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from authority import DAY, Authority
from locked_registry import locked_registry
from pushed_images import Pushed, Pusher
from testbed_fixtures import fresh_name

from hatoba_worker.agent.blobs import Cut, Unusable
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.registries import Registries
from hatoba_worker.agent.registry import Manifest, Platform, Reference, opened
from hatoba_worker.agent.settings import BadSettings, RegistryAccess

AMD = Platform("amd64")
TODAY = dt.datetime.now(dt.UTC).replace(microsecond=0)


@pytest.fixture
async def pushed(registry: str) -> Pushed:
    """A small image."""
    async with opened() as session:
        pusher = Pusher(session, registry, fresh_name("edge"))
        return await pusher.image({"main": b"x"}, "amd64")


@pytest.fixture
def clock(tmp_path: Path) -> FloorClock:
    """A device's dates; no server has said any."""
    built = time.time() - DAY.total_seconds()
    return FloorClock(tmp_path / "clock", built, time.time, time.monotonic)


async def brought(
    clock: FloorClock,
    pushed: Pushed,
    access: RegistryAccess,
    *,
    host: str = "",
    system: Callable[[], float] = time.time,
) -> Manifest:
    """Its manifest, by these settings."""
    reference = Reference.parse(pushed.reference)
    registries = Registries(lambda: {host or reference.host: access}, clock, system)
    async with registries.reached(reference) as registry:
        return await registry.manifest(AMD)


async def test_a_mirror_with_credentials_of_a_file(
    clock: FloorClock, pushed: Pushed, tmp_path: Path
) -> None:
    login = tmp_path / "login"
    await asyncio.to_thread(login.write_text, "dev:secret\n")
    await asyncio.to_thread(login.chmod, 0o600)
    async with locked_registry("127.0.0.1", pushed.host, "dev:secret") as mirror:
        access = RegistryAccess(at=mirror, login_file=str(login))
        for host in ("", "*"):
            assert (await brought(clock, pushed, access, host=host)).digest == pushed.digest


async def test_without_tls_only_where_that_is_said(clock: FloorClock, pushed: Pushed) -> None:
    assert (await brought(clock, pushed, RegistryAccess(plain=True))).digest == pushed.digest
    with pytest.raises(Cut):
        await brought(clock, pushed, RegistryAccess())


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("dev:secret", 0o644, "can be read by others: chmod 600 it"),
        ("secret", 0o600, "has no USER:PASSWORD"),
        (None, 0, "No such file"),
    ],
)
async def test_credentials_that_cannot_be_used_are_said(
    clock: FloorClock, pushed: Pushed, tmp_path: Path, text: str | None, mode: int, said: str
) -> None:
    login = tmp_path / "login"
    if text is not None:
        await asyncio.to_thread(login.write_text, text)
        await asyncio.to_thread(login.chmod, mode)
    with pytest.raises(Unusable, match=said):
        await brought(clock, pushed, RegistryAccess(plain=True, login_file=str(login)))


async def test_settings_that_cannot_be_read_are_said(clock: FloorClock, pushed: Pushed) -> None:
    def known() -> dict[str, RegistryAccess]:
        raise BadSettings("agent.json cannot be used")

    with pytest.raises(Unusable, match=r"agent\.json cannot be used"):
        async with Registries(known, clock).reached(Reference.parse(pushed.reference)):
            pass


# -- TLS ------------------------------------------------------------------------------------------


@dataclass
class Secure:
    """A registry over TLS, and who signed its certificate."""

    port: int
    authority: Path

    @property
    def access(self) -> RegistryAccess:
        """How it is reached."""
        return RegistryAccess(at=f"localhost:{self.port}", ca_file=str(self.authority))


async def serving(root: Path, behind: str, ends: dt.datetime) -> AsyncIterator[Secure]:
    """A registry in front of one without, with a certificate that is good until then."""

    def context() -> tuple[ssl.SSLContext, Path]:
        made = Authority(root / "authority", TODAY)
        found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        found.load_cert_chain(made.pair("own.pem", "localhost", TODAY - 9 * DAY, ends))
        return found, made.pem

    async def answer(request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in ("Accept",) if name in request.headers}
        async with session.get(f"http://{behind}{request.path_qs}", headers=headers) as reply:
            return web.Response(body=await reply.read(), status=reply.status)

    tls, authority = await asyncio.to_thread(context)
    async with ClientSession() as session:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield Secure(runner.addresses[0][1], authority)
        await runner.cleanup()


@pytest.fixture
async def secure(tmp_path: Path, pushed: Pushed) -> AsyncIterator[Secure]:
    async for one in serving(tmp_path, pushed.host, TODAY + 9 * DAY):
        yield one


@pytest.fixture
async def expired(tmp_path: Path, pushed: Pushed) -> AsyncIterator[Secure]:
    async for one in serving(tmp_path, pushed.host, TODAY - DAY):
        yield one


async def test_an_authority_of_its_own_is_believed(
    clock: FloorClock, pushed: Pushed, secure: Secure, tmp_path: Path
) -> None:
    assert (await brought(clock, pushed, secure.access)).digest == pushed.digest
    other = (await asyncio.to_thread(Authority, tmp_path / "other", TODAY)).pem
    access = replace(secure.access, ca_file=str(other))
    with pytest.raises(Cut, match="certificate verify failed"):
        await brought(clock, pushed, access)


async def test_a_clock_that_is_wrong_keeps_nobody_from_images(
    clock: FloorClock, pushed: Pushed, expired: Secure
) -> None:
    with pytest.raises(Cut, match="certificate has expired"):
        await brought(clock, pushed, expired.access)
    # The machine's clock is known to be wrong: it is no date to refuse a certificate by.
    found = await brought(clock, pushed, expired.access, system=lambda: 0.0)
    assert found.digest == pushed.digest
