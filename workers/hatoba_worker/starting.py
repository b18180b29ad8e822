"""How `hatoba worker start` comes to be a host of a server: with a token file, or by joining."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from hatoba.errors import InvalidSpec
from hatoba.settings import parse_address, read_token
from hatoba_worker.config import FILE, BadConfig, Config, is_loopback, load
from hatoba_worker.host import Identity


class WrongStart(Exception):
    """It cannot be a host this way; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the command line says; `serve_address` None: nothing."""

    data: Path
    server: str
    join: str
    token_file: str
    ca_file: str
    name: str
    serve_address: str | None


@dataclass(frozen=True, slots=True)
class Entered:
    """What follows from it, as in Config."""

    token_file: str
    ca_file: str
    joined: bool
    name: str
    serve_address: str


def go_on(data: Path) -> Config:
    """The settings of the last start; blocks. Raises WrongStart."""
    if not (data / FILE).exists():
        raise WrongStart(f"{data} is no host yet: give --server and --join, or --token-file")
    try:
        return load(data)
    except BadConfig as error:
        raise WrongStart(str(error)) from error


def entered(entry: Entry) -> Entered:
    """Join if that was asked for and has not been done; blocks. Raises WrongStart."""
    try:
        parse_address(entry.server)
        return _with_token(entry) if entry.token_file else _joined(entry)
    except InvalidSpec as error:
        raise WrongStart(f"{error}; {error.remedy}") from error
    except (OSError, ValueError) as error:
        raise WrongStart(str(error)) from error


def _with_token(entry: Entry) -> Entered:
    if entry.join:
        raise WrongStart("--join and --token-file exclude each other")
    read_token(entry.token_file)
    serve = entry.serve_address or "127.0.0.1"
    if not is_loopback(serve):
        raise WrongStart(
            f"replicas would answer everybody at {serve} in plain text: only a host that joined "
            "has a certificate for TLS; `hatoba hosts add` prints how"
        )
    token_file = _absolute(entry.token_file)
    return Entered(token_file, _absolute(entry.ca_file), False, entry.name, serve)


def _joined(entry: Entry) -> Entered:
    from hatoba_worker import joining, key_files, keys

    ca_file = _absolute(entry.ca_file)
    if entry.join:
        text = joining.JoinText.parse(entry.join)
        wanted = Identity.find(entry.data, entry.name, embedded=False).name
        given = Path(ca_file).read_bytes() if ca_file else None
        host = asyncio.run(joining.join(entry.data, entry.server, text, given, wanted))
        pinned = bool(text.authority)
    else:
        known = keys.HostKeys.load(entry.data)
        if known is None:
            raise WrongStart("give --join with what `hatoba hosts add` printed, or --token-file")
        host, pinned = known.host, bool(go_on(entry.data).ca_file)
    if pinned and not ca_file:
        ca_file = str(key_files.directory(entry.data) / keys.AUTHORITY)
    return Entered("", ca_file, True, host, entry.serve_address or "")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""
