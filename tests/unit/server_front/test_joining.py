"""What opens a host, on a clock moved by hand: tokens to join, certificates, what is signed."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from fake_hosts import KeptHosts

from hatoba.v1 import worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth import authority as authorities
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.authority import Authority
from hatoba_scheduler.auth.host_credentials import PREFIX, SKEW, HostCredentials
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import Reason, Unauthenticated
from hatoba_scheduler.interceptors.context import CallContext, enter_call
from hatoba_scheduler.services.joining import Joining, JoinParts
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.telemetry.tracing import SpanContext
from hatoba_worker import keys

DAY = 86_400.0
LIFE = authorities.LIFE.total_seconds()


class KeptTokens:
    """The part of a store that the authenticator uses."""

    def __init__(self) -> None:
        self.kept: dict[str, TokenRecord] = {}

    async def tokens(self) -> list[TokenRecord]:
        """All that were kept."""
        return list(self.kept.values())

    async def put_token(self, token: TokenRecord) -> None:
        """Keep it."""
        self.kept[token.id] = token


class Desk:
    """A server's side, and machines that come to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.tokens = KeptTokens()
        self.hub = Hub(cast(Store, KeptHosts()), self.clock, "0")
        self.authority = Authority.open(directory / "tls", "cluster", self._now)
        self.open()

    def open(self) -> None:
        """As after a start: with what was kept, and nothing else."""
        self.authenticator = Authenticator(self.tokens, self._micros)
        hosts = HostCredentials(self.authority, self.authenticator.identity_of, self._micros)
        self.authenticator.accept(PREFIX, hosts.authenticate)
        parts = JoinParts(self.hub, self.authenticator, self.authority, lambda: "s:1", pinned=True)
        self.joining = Joining(parts)

    def _micros(self) -> int:
        return round(self.clock.time() * 1e6)

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock.time(), dt.UTC)

    def calls(self, text: str) -> TokenRecord:
        """Whoever shows this calls from now on. Raises Unauthenticated."""
        token = self.authenticator.authenticate(f"Bearer {text}")
        trace = SpanContext("0" * 32, "0" * 16, sampled=False)
        enter_call(CallContext("test", "", trace, token))
        return token

    async def token(self, host: str = "", seconds: int = 60) -> str:
        """A join token's text."""
        _, admin = await self.authenticator.create("admin", Role.ADMIN)
        self.calls(admin)
        request = worker_pb2.CreateJoinTokenRequest(host=host)
        request.ttl.seconds = seconds
        made = await self.joining.create_token(request)
        text, _, pinned = made.secret.partition(".")
        assert pinned == self.authority.short
        return text

    async def join(self, text: str, name: str = "node") -> keys.HostKeys:
        """A machine joins with a key of its own."""
        self.calls(text)
        own, serving = keys.new_key(), keys.new_key()
        request = worker_pb2.JoinHostRequest(
            host=name, csr=keys.request_for(own), serving_csr=keys.request_for(serving)
        )
        given = await self.joining.join(request)
        certificate = x509.load_pem_x509_certificate(given.certificate.encode())
        self.own = keys.Own(own, certificate)
        return keys.HostKeys(self.directory, self.own, self.clock.time)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """One of each test's own."""
    return Desk(tmp_path)


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Another installation."""
    return Desk(tmp_path_factory.mktemp("other"))


def refusal(desk: Desk, text: str) -> Reason:
    """Why this opens nothing."""
    with pytest.raises(Unauthenticated) as caught:
        desk.calls(text)
    return caught.value.reason


async def test_a_token_that_is_late_makes_no_host(desk: Desk) -> None:
    text = await desk.token(seconds=60)
    await desk.clock.advance(59)
    desk.calls(text)
    await desk.clock.advance(1)
    assert refusal(desk, text) is Reason.TOKEN_EXPIRED


async def test_a_host_outlives_the_time_of_its_token(desk: Desk) -> None:
    node = await desk.join(await desk.token(seconds=60))
    await desk.clock.advance(30 * DAY)
    assert desk.calls(node.credential()).host == "node"


async def test_a_host_is_known_after_a_restart(desk: Desk) -> None:
    node = await desk.join(await desk.token())
    desk.open()
    assert refusal(desk, node.credential()) is Reason.HOST_UNKNOWN
    await desk.authenticator.load()
    called = desk.calls(node.credential())
    assert (called.host, called.role, called.principal) == ("node", Role.WORKER, "hosts/node")


@pytest.mark.parametrize("seconds", [SKEW - 1, 1 - SKEW])
async def test_a_clock_may_be_wrong_by_an_hour(desk: Desk, seconds: float) -> None:
    node = await desk.join(await desk.token())
    ahead = keys.HostKeys(desk.directory, desk.own, lambda: desk.clock.time() - min(seconds, 0))
    text = (node if seconds > 0 else ahead).credential()
    await desk.clock.advance(max(seconds, 0))
    assert desk.calls(text).host == "node"


async def test_what_was_signed_long_ago_opens_nothing(desk: Desk) -> None:
    node = await desk.join(await desk.token())
    old = node.credential()
    await desk.clock.advance(SKEW + 2)
    assert refusal(desk, old) is Reason.HOST_UNKNOWN
    assert node.credential() != old
    assert desk.calls(node.credential()).host == "node"


async def test_certificates_are_due_at_two_thirds_and_end(desk: Desk) -> None:
    node = await desk.join(await desk.token())
    await desk.clock.advance(LIFE * 2 / 3 - DAY)
    assert not node.due()
    await desk.clock.advance(DAY)
    assert node.due()
    desk.calls(node.credential())
    await desk.clock.advance(LIFE / 3)
    assert refusal(desk, node.credential()) is Reason.HOST_UNKNOWN


async def test_a_host_that_is_revoked_opens_nothing(desk: Desk) -> None:
    node = await desk.join(await desk.token())
    ended: list[str] = []
    desk.authenticator.on_revoked(node.identity, lambda: ended.append(node.host))
    await desk.authenticator.revoke(node.identity)
    assert ended == ["node"]
    assert refusal(desk, node.credential()) is Reason.HOST_UNKNOWN


async def test_a_certificate_of_another_installation_opens_nothing(desk: Desk, other: Desk) -> None:
    stranger = await other.join(await other.token())
    await desk.join(await desk.token())
    assert refusal(desk, stranger.credential()) is Reason.HOST_UNKNOWN
