"""How a device reaches registries of images, as its settings say now.

Who runs a mirror is believed no more than anybody else: an image is what its digest says.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from hatoba_worker.agent.blobs import Unusable
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.registry import Login, Reference, Registry, opened
from hatoba_worker.agent.settings import BadSettings, RegistryAccess
from hatoba_worker.agent.tunnel import NO_CHECK_TIME

ALL_OTHERS = "*"
CLOCK_OFF = 3_600.0
"""Seconds by which a machine's clock may differ from what is known before it counts as wrong."""
_NOT_OTHERS = stat.S_IRWXG | stat.S_IRWXO
Accesses = Mapping[str, RegistryAccess]


class _Means(NamedTuple):
    """What a registry is reached with; `tls` None: plain HTTP."""

    at: str
    tls: ssl.SSLContext | None
    login: Login | None


class Registries:
    """`known` tells the settings; it blocks and may raise BadSettings. `system` is the machine's
    clock, Unix seconds.
    """

    def __init__(
        self,
        known: Callable[[], Accesses],
        clock: FloorClock,
        system: Callable[[], float] = time.time,
    ) -> None:
        self._known = known
        self._clock = clock
        self._system = system

    @contextlib.asynccontextmanager
    async def reached(self, reference: Reference) -> AsyncIterator[Registry]:
        """The registry of an image. Raises Unusable for settings by which there is none."""
        means = await asyncio.to_thread(self._means, reference.host)
        async with opened(means.tls) as session:
            yield Registry(
                session, reference, at=means.at, plain=means.tls is None, login=means.login
            )

    def _means(self, host: str) -> _Means:
        try:
            known = self._known()
            access = known.get(host) or known.get(ALL_OTHERS) or RegistryAccess()
            at = access.at or host
            plain = access.plain or (_is_own(at) and not access.ca_file)
            tls = None if plain else self._tls(access.ca_file)
            return _Means(at, tls, _login(access.login_file) if access.login_file else None)
        except (BadSettings, OSError, ValueError) as error:
            raise Unusable(f"the settings of this device for {host}: {error}") from error

    def _tls(self, authority: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=authority or None)
        if abs(self._system() - self._clock.now()) > CLOCK_OFF:
            # Names and signatures are checked as ever; dates cannot be.
            context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
        return context


def _is_own(at: str) -> bool:
    """Whether `HOST[:PORT]` is this machine itself."""
    host = at.strip("[]") if at.endswith("]") else at.rpartition(":")[0].strip("[]") or at
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _login(path: str) -> Login:
    """`USER:PASSWORD` of a file that nobody else can read. Raises OSError, ValueError."""
    file = Path(path)
    if file.stat().st_mode & _NOT_OTHERS:
        raise ValueError(f"{path} can be read by others: chmod 600 it")
    user, colon, password = file.read_text(encoding="utf-8").strip().partition(":")
    if not colon:
        raise ValueError(f"{path} has no USER:PASSWORD")
    return Login(user, password)
