"""By what a worker that joined is known, as it is now: keys that are renewed while it works."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hatoba_worker import key_files, keys
from hatoba_worker.config import BadConfig, Config, is_loopback
from hatoba_worker.joining import Renewal
from hatoba_worker.replicas.probe import Secure
from hatoba_worker.session import Session


class KnownBy:
    """The keys of a data directory, and what follows from them."""

    def __init__(self, config: Config, found: keys.HostKeys) -> None:
        self._data = config.data
        self._exposed = not is_loopback(config.serves_at)
        self._take(found)

    @classmethod
    def load(cls, config: Config) -> KnownBy | None:
        """Those of a worker that joined; blocks. Raises BadConfig when there are none."""
        if not config.joined:
            return None
        try:
            found = keys.HostKeys.load(config.data)
        except (keys.BadKeys, OSError) as error:
            raise BadConfig(str(error)) from error
        if found is None:
            where = key_files.directory(config.data)
            raise BadConfig(f"{where} has no key; `hatoba hosts add` makes this a host again")
        return cls(config, found)

    def _take(self, found: keys.HostKeys) -> None:
        self._keys = found
        self._caller = Secure(found.client_context(), found.server_name)

    @property
    def host(self) -> str:
        """The host's name."""
        return self._keys.host

    def credential(self) -> str:
        """What to show to the server now."""
        return self._keys.credential()

    def serving(self) -> Mapping[str, object] | None:
        """What a replica needs for TLS; None while only this machine can reach it."""
        return self._keys.serving() if self._exposed else None

    def caller(self) -> Secure:
        """How to speak to replicas here."""
        return self._caller

    async def renew(self, session: Session) -> None:
        """Have new certificates in time, until cancelled; they are shown on the next stream."""

        async def renewed() -> None:
            found = await asyncio.to_thread(keys.HostKeys.load, self._data)
            if found is not None:
                await asyncio.to_thread(self._take, found)
                session.hang_up()

        await Renewal(self._data, lambda: self._keys, renewed).run(session.link)
