"""A joined host's certificates while it works: renewed in time, shown by replicas that go on."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from hatoba_scheduler.auth.authority import LIFE, Authority, HostIdentity
from hatoba_worker import keys
from hatoba_worker.dial import Connection
from hatoba_worker.joining import LOOK_EVERY, LOOK_SOON, JoinText, NotJoined, Renewal
from hatoba_worker.serving.config import Tls
from hatoba_worker.serving.tls import LOOK_EVERY as LOOK_AT_FILES
from hatoba_worker.serving.tls import Gate

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
HOST = HostIdentity("node", "0123456789ab")


def authority(directory: Path, now: dt.datetime = NOW) -> Authority:
    """One whose clock stands still."""
    return Authority.open(directory, "cluster", lambda: now)


def host_keys(made: Authority, data: Path, clock: Callable[[], float]) -> keys.HostKeys:
    """A host's keys, signed now."""
    own = keys.new_key()
    csr = x509.load_pem_x509_csr(keys.request_for(own).encode())
    certificate = x509.load_pem_x509_certificate(made.sign_host(csr, HOST).encode())
    return keys.HostKeys(data, keys.Own(own, certificate), clock)


def serving(made: Authority, path: Path) -> None:
    """What a replica shows, anew."""
    own = keys.new_key()
    csr = x509.load_pem_x509_csr(keys.request_for(own).encode())
    keys.write_own(path, own, made.sign_serving(csr, HOST.host))


class Waits:
    """Sleeps that are noted; the last one never ends."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seen.append(seconds)
        if len(self.seen) == self.count:
            raise EOFError


async def nobody() -> Connection:
    """A link on which every call fails."""
    raise AssertionError("it is not due")


async def test_what_is_not_due_is_looked_at_again_later(tmp_path: Path) -> None:
    made = await asyncio.to_thread(authority, tmp_path)
    young = host_keys(made, tmp_path, NOW.timestamp)
    waits = Waits(2)
    with pytest.raises(EOFError):
        await Renewal(tmp_path, lambda: young, unheard, waits.sleep).run(nobody)
    assert waits.seen == [LOOK_EVERY, LOOK_EVERY]


async def unheard() -> None:
    """Nothing is to be heard."""
    raise AssertionError("nothing was renewed")


async def test_a_renewal_that_fails_is_tried_again_soon(tmp_path: Path) -> None:
    made = await asyncio.to_thread(authority, tmp_path)
    old = host_keys(made, tmp_path, (NOW + LIFE * 0.7).timestamp)
    waits = Waits(2)
    async with grpc.aio.insecure_channel("127.0.0.1:9") as nowhere:

        async def link() -> Connection:
            return Connection(nowhere, nowhere, old.credential)

        with pytest.raises(EOFError):
            await Renewal(tmp_path, lambda: old, unheard, waits.sleep).run(link)
    assert waits.seen == [LOOK_SOON, LOOK_SOON]


def test_a_replica_shows_a_renewed_certificate(tmp_path: Path) -> None:
    made = authority(tmp_path)
    path, believed = tmp_path / keys.SERVING, tmp_path / "ca.pem"
    serving(made, path)
    gate = Gate(Tls(path, believed, ("hatoba://cluster/routers/",)))
    first = _shown(gate)
    serving(made, path)
    gate.refresh(1.0)
    assert _shown(gate) == first
    gate.refresh(LOOK_AT_FILES + 1.0)
    assert _shown(gate) != first
    # Half of an exchange, or none: what it has goes on.
    path.unlink()
    gate.refresh(2 * LOOK_AT_FILES + 2.0)
    assert _shown(gate) != first


def _shown(gate: Gate) -> bytes:
    """The certificate that a client is shown, by a hand-shake in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname="node.hosts.hatoba")
    answering = gate.context.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLError:
                # It waits for the other, or wants a certificate of the client in the end.
                continue
    shown = asking.getpeercert(binary_form=True)
    assert shown is not None
    return shown


@pytest.mark.parametrize(
    "text", ["", "hatoba", "hb_short_x", "hr_0123456789ab_" + "x" * 32, "hb_0123456789ab_x.AA.BB"]
)
def test_what_is_no_join_token_is_said(text: str) -> None:
    with pytest.raises(NotJoined, match="hatoba hosts add"):
        JoinText.parse(text)
