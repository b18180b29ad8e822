"""What building an image asks of a Docker engine, over its unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

API = "/v1.40"
HOURS = 6 * 3600.0


class EngineError(Exception):
    """The engine refused or is not there; the message has its own words."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=HOURS)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """One engine. Everything here blocks; every call raises EngineError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def build(self, context: Iterable[bytes], tag: str, platform: str) -> Iterator[str]:
        """Build a context (a tar) into an image; yields what the build says."""
        query = urlencode({"t": tag, "platform": platform, "forcerm": "1", "version": "1"})
        headers = {"Content-Type": "application/x-tar"}
        for said in self._stream("POST", f"/build?{query}", headers, context):
            if text := said.get("stream", "").rstrip("\n"):
                yield text

    def push(self, tag: str, credentials: str) -> Iterator[str]:
        """Push an image; yields what happens, and as the last thing its digest."""
        repository, _, label = tag.rpartition(":")
        digest = ""
        where = f"/images/{quote(repository, safe='/:')}/push?{urlencode({'tag': label})}"
        for said in self._stream("POST", where, {"X-Registry-Auth": credentials}):
            digest = said.get("aux", {}).get("Digest", digest)
            if said.get("status") and not said.get("progressDetail"):
                yield f"{said.get('id', '')} {said['status']}".strip()
        if not digest:
            raise EngineError(f"{tag}: the registry said no digest")
        yield digest

    def inspect(self, tag: str) -> dict[str, Any]:
        """What the engine knows of an image."""
        connection, reply = self._ask("GET", f"/images/{quote(tag, safe='/:')}/json", {}, None)
        try:
            return dict(json.load(reply))
        finally:
            connection.close()

    def _stream(
        self,
        method: str,
        where: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | None = None,
    ) -> Iterator[dict[str, Any]]:
        connection, reply = self._ask(method, where, headers, body)
        try:
            for line in reply:
                said = json.loads(line)
                if "error" in said:
                    raise EngineError(said["error"])
                yield said
        finally:
            connection.close()

    def _ask(
        self, method: str, where: str, headers: Mapping[str, str], body: Iterable[bytes] | None
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        connection = _Connection(self._path)
        try:
            connection.request(method, API + where, body, dict(headers), encode_chunked=True)
            reply = connection.getresponse()
        except OSError as error:
            connection.close()
            raise EngineError(f"no Docker engine answers at {self._path}: {error}") from None
        if reply.status >= 400:
            words = reply.read().decode(errors="replace")
            connection.close()
            raise EngineError(_message(words))
        return connection, reply


def _message(words: str) -> str:
    try:
        return str(json.loads(words)["message"])
    except (ValueError, KeyError, TypeError):
        return words.strip() or "the engine refused without a word"
