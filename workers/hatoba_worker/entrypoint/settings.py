"""What the runner is told, in variables of its environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hatoba.errors import InvalidSpec
from hatoba.settings import parse_address
from hatoba_worker.attempts import SAFE_NAME
from hatoba_worker.dial import Target
from hatoba_worker.entrypoint.places import INDEXES, Environ, index_of

PORT = 8080
TERM_SECONDS = 30.0
CLAIM_SECONDS = 600.0
_OURS = frozenset(
    {
        "HATOBA_SERVER",
        "HATOBA_CA",
        "HATOBA_ATTEMPT",
        "HATOBA_FENCE",
        "HATOBA_CREDENTIAL",
        "HATOBA_MEMBERS",
        "HATOBA_RUN",
        "HATOBA_MEMBER",
        "HATOBA_GANG_SIZE",
        "HATOBA_ADDRESS",
        "HATOBA_TERM_SECONDS",
        "HATOBA_CLAIM_SECONDS",
        "HATOBA_RUNNER_DIR",
        "HATOBA_SHARED_DIR",
        "HATOBA_REPLICA",
        "HATOBA_REPLICA_PREFIX",
        "HATOBA_PORT",
    }
)
_FENCE = re.compile(r"[0-9]{1,18}")
_LONGEST = 30 * 86_400.0


class BadSettings(ValueError):
    """A variable that is missing or cannot be used; the message names it and what would do."""


class Member(NamedTuple):
    """Which attempt, and what opens its claim."""

    attempt: str
    fence: int
    credential: str


@dataclass(frozen=True, slots=True)
class Settings:
    """One attempt's runner. `address` is where others of its gang reach it, empty: find out;
    seconds are those of the table in docs/runner.md.
    """

    target: Target
    attempt: str
    fence: int
    gang: bool
    address: str
    term_seconds: float
    claim_seconds: float


def settings_of(environ: Environ) -> Settings:
    """Read the variables of an attempt's runner; raises BadSettings. Blocks on a file at most."""
    member = _member(environ)
    return Settings(
        target=target_of(environ, member.credential),
        attempt=member.attempt,
        fence=member.fence,
        gang=environ.get("HATOBA_GANG_SIZE", "0") not in ("", "0"),
        address=environ.get("HATOBA_ADDRESS", ""),
        term_seconds=_seconds(environ, "HATOBA_TERM_SECONDS", TERM_SECONDS),
        claim_seconds=claim_seconds(environ),
    )


def target_of(environ: Environ, credential: str) -> Target:
    """The server, and the credential shown to it; raises BadSettings."""
    server = environ.get("HATOBA_SERVER", "")
    if not server:
        raise BadSettings("HATOBA_SERVER is missing: grpcs://HOST:PORT is needed")
    try:
        address, tls = parse_address(server)
    except InvalidSpec as error:
        raise BadSettings(f"HATOBA_SERVER: {error}") from error
    authority = environ.get("HATOBA_CA", "").encode() or None
    if not credential or any(sign.isspace() for sign in credential):
        raise BadSettings("HATOBA_CREDENTIAL is missing or is no credential")
    return Target(address, tls, authority, credential)


def claim_seconds(environ: Environ) -> float:
    """How long the server may be out of reach before anything begins; raises BadSettings."""
    return _seconds(environ, "HATOBA_CLAIM_SECONDS", CLAIM_SECONDS)


def port_of(environ: Environ) -> int:
    """Where a replica answers; raises BadSettings."""
    text = environ.get("HATOBA_PORT", "") or str(PORT)
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise BadSettings(f"HATOBA_PORT is {text!r}: a port from 1 to 65535 is needed")
    return int(text)


def without_ours(environ: Environ) -> dict[str, str]:
    """The container's environment as the user's code may see it."""
    return {name: value for name, value in environ.items() if name not in _OURS}


def _member(environ: Environ) -> Member:
    members = environ.get("HATOBA_MEMBERS", "")
    if members:
        return _of_many(members, environ)
    told = {"attempt": environ.get("HATOBA_ATTEMPT"), "fence": environ.get("HATOBA_FENCE")}
    return _checked({**told, "credential": environ.get("HATOBA_CREDENTIAL", "")})


def _of_many(members: str, environ: Environ) -> Member:
    name, index = index_of(environ)
    try:
        text = members if members.lstrip().startswith("[") else Path(members).read_text("utf-8")
        listed = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadSettings(f"HATOBA_MEMBERS cannot be read: {error}") from error
    if not isinstance(listed, list) or not index.isdecimal() or int(index) >= len(listed):
        raise BadSettings(f"{name or INDEXES[0]} is {index!r}, which is no place in HATOBA_MEMBERS")
    found = listed[int(index)]
    if not isinstance(found, dict):
        raise BadSettings(f"HATOBA_MEMBERS: member {index} is no object")
    return _checked(found)


def _checked(found: Mapping[str, object]) -> Member:
    attempt, fence = str(found.get("attempt") or ""), str(found.get("fence", ""))
    if not SAFE_NAME.fullmatch(attempt):
        raise BadSettings(f"HATOBA_ATTEMPT is {attempt!r}, which is no attempt's name")
    if not _FENCE.fullmatch(fence):
        raise BadSettings(f"HATOBA_FENCE is {fence!r}: a whole number is needed")
    return Member(attempt, int(fence), str(found.get("credential") or ""))


def _seconds(environ: Environ, name: str, default: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found <= _LONGEST:
        raise BadSettings(f"{name} is {text!r}: seconds above 0 are needed")
    return found
