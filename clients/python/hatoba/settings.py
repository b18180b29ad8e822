"""Which server to talk to, looked up in one order: arguments, environment, context, embedded
server.

Contexts are kept in `~/.config/hatoba/contexts.json` with a copy of each token beside it (0600).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hatoba.errors import InvalidSpec, NotFound

DEFAULT_PROJECT = "default"
CONTEXT_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
ADDRESS = re.compile(
    r"^(?:(https?|grpcs?)://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})/?$"
)
LOOPBACK = re.compile(r"^(?:localhost|\[::1\]|127(?:\.[0-9]{1,3}){3})$")


@dataclass(frozen=True)
class Server:
    """One server: where it is, the token to show, and where that was found.

    `address` is `host:port`; `ca_file` names the authority of a server that made its own; `key`
    names the server in this user's memory, also when its port changes; `source` says to people
    where the address came from.
    """

    address: str
    token: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    project: str = ""
    key: str = ""
    source: str = ""


@dataclass(frozen=True)
class Choice:
    """What the caller said about the server; empty fields were not said."""

    address: str = ""
    token_file: str = ""
    ca_file: str = ""
    context: str = ""


@dataclass(frozen=True)
class Context:
    """A remembered server."""

    name: str
    address: str
    token_file: str = ""
    ca_file: str = ""
    project: str = ""


def find_server(choice: Choice, environ: Mapping[str, str] | None = None) -> Server | None:
    """The server that is meant, or None when that is an embedded one which does not run.

    Raises InvalidSpec for an address or file that cannot be used, NotFound for an unknown context.
    """
    env = os.environ if environ is None else environ
    if choice.address:
        token_file = choice.token_file or env.get("HATOBA_TOKEN_FILE", "")
        return _server(choice.address, token_file, choice.ca_file, source="--address")
    if env.get("HATOBA_ADDRESS") and not choice.context:
        return _from_variables(choice, env)
    book = ContextBook(config_dir(env))
    name = choice.context or book.current
    if name:
        return _from_context(book.get(name), choice)
    found = embedded_server(data_dir(env))
    if found is None or not choice.token_file:
        return found
    return replace(found, token=read_token(choice.token_file))


def _from_variables(choice: Choice, env: Mapping[str, str]) -> Server:
    return _server(
        env["HATOBA_ADDRESS"],
        choice.token_file or env.get("HATOBA_TOKEN_FILE", ""),
        choice.ca_file or env.get("HATOBA_CA_FILE", ""),
        source="HATOBA_ADDRESS",
    )


def _from_context(context: Context, choice: Choice) -> Server:
    token_file = choice.token_file or context.token_file
    found = _server(context.address, token_file, choice.ca_file or context.ca_file, source="")
    source = f"context {context.name}"
    return replace(found, project=context.project, key=source, source=source)


def _server(address: str, token_file: str, ca_file: str, *, source: str) -> Server:
    host_port, tls = parse_address(address)
    token = read_token(token_file) if token_file else ""
    return Server(host_port, token, tls or bool(ca_file), ca_file, key=host_port, source=source)


def parse_address(text: str) -> tuple[str, bool]:
    """`host:port` and whether TLS is spoken there: on loopback only when asked for, elsewhere
    always.
    """
    match = ADDRESS.match(text.strip())
    if match is None or int(match[3]) > 65535:
        raise InvalidSpec(
            f"{text!r} is not an address",
            remedy="write HOST:PORT, for example hatoba.example:7070 or 127.0.0.1:7070",
        )
    scheme, host, port = match[1] or "", match[2], match[3]
    loopback = LOOPBACK.match(host) is not None
    if scheme in {"http", "grpc"} and not loopback:
        raise InvalidSpec(
            f"{text!r} would send the token in plain text",
            remedy=f"only loopback may be plain; write {host}:{port} or https://{host}:{port}",
        )
    return f"{host}:{port}", scheme in {"https", "grpcs"} or not loopback


def read_token(path: str) -> str:
    """The token alone in a file; errors name the file."""
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"the token file {path} cannot be read: {_reason(error)}") from None
    if not token or any(character.isspace() for character in token):
        raise InvalidSpec(
            f"{path} does not hold a token", remedy="the file holds the token and nothing else"
        )
    return token


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The embedded server's directory: `HATOBA_DATA`, or `~/.local/share/hatoba`."""
    return _directory(environ, "HATOBA_DATA", "XDG_DATA_HOME", "~/.local/share")


def config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where contexts are kept: `HATOBA_CONFIG`, or `~/.config/hatoba`."""
    return _directory(environ, "HATOBA_CONFIG", "XDG_CONFIG_HOME", "~/.config")


def state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where this user's last job per server is remembered: `~/.local/state/hatoba`."""
    return _directory(environ, "HATOBA_STATE", "XDG_STATE_HOME", "~/.local/state")


def _directory(environ: Mapping[str, str] | None, own: str, shared: str, default: str) -> Path:
    env = os.environ if environ is None else environ
    if env.get(own):
        return Path(env[own]).expanduser()
    home = env.get("HOME", "~")
    return Path(env.get(shared) or default.replace("~", home, 1)).expanduser() / "hatoba"


def embedded_server(data: Path) -> Server | None:
    """The server that runs on the directory `data`, by its `server.json`; None when none does."""
    try:
        found = json.loads((data / "server.json").read_text(encoding="utf-8"))
        address, pid = str(found["grpc"]), int(found["pid"])
        token_file = str(found.get("token_file") or data / "admin.token")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not _runs(pid):
        return None
    token = read_token(token_file) if Path(token_file).exists() else ""
    host_port, _ = parse_address(address)
    ca_file = str(found.get("ca_file") or "")
    tls = bool(ca_file)
    source = f"embedded server in {data}"
    return Server(host_port, token, tls, ca_file, key=str(data.resolve()), source=source)


def _runs(pid: int) -> bool:
    """Whether the process lives and is a Python program, so that a recycled id is not taken
    for it.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"hatoba" in command or b"python" in command


class ContextBook:
    """The remembered servers of one user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "contexts.json"

    @property
    def current(self) -> str:
        """The name of the context in use; empty for none."""
        return str(self._read().get("current", ""))

    def all(self) -> list[Context]:
        """Every context, by name."""
        known = self._read().get("contexts", {})
        return [Context(name, **values) for name, values in sorted(known.items())]

    def get(self, name: str) -> Context:
        """The context of that name; raises NotFound with the names there are."""
        for context in self.all():
            if context.name == name:
                return context
        names = ", ".join(context.name for context in self.all()) or "none"
        raise NotFound(f"there is no context {name!r}", remedy=f"known contexts: {names}")

    def put(self, context: Context, token: str = "", *, use: bool = False) -> None:
        """Remember a server; a `token` is copied to a file of its own, readable by its owner
        only.
        """
        if not CONTEXT_NAME.match(context.name):
            raise InvalidSpec(
                f"{context.name!r} is not a context's name",
                remedy="use letters, digits, dots and dashes",
            )
        token_file = self._keep_token(context.name, token) if token else context.token_file
        book = self._read()
        values = {"address": context.address, "token_file": token_file}
        values |= {"ca_file": context.ca_file, "project": context.project}
        book.setdefault("contexts", {})[context.name] = {k: v for k, v in values.items() if v}
        if use:
            book["current"] = context.name
        self._write(book)

    def use(self, name: str) -> None:
        """Make `name` the context that is used; empty: none, so that the embedded server is."""
        book = self._read()
        if name:
            self.get(name)
        book["current"] = name
        self._write(book)

    def remove(self, name: str) -> None:
        """Forget a context and its token."""
        self.get(name)
        book = self._read()
        del book["contexts"][name]
        if book.get("current") == name:
            book["current"] = ""
        self._write(book)
        self._token_path(name).unlink(missing_ok=True)

    def _token_path(self, name: str) -> Path:
        return self.directory / "tokens" / name

    def _keep_token(self, name: str, token: str) -> str:
        path = self._token_path(name)
        _write_private(path, token + "\n")
        return str(path)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InvalidSpec(
                f"{self.path} cannot be read: {error}",
                remedy="mend it, or remove it and log in again",
            ) from None
        return found if isinstance(found, dict) else {}

    def _write(self, book: dict[str, Any]) -> None:
        _write_private(self.path, json.dumps(book, indent=2, sort_keys=True) + "\n")


def _write_private(path: Path, text: str) -> None:
    """Replace a file atomically; directory 0700, file 0600."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).replace(path)
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Memory:
    """What this user did last on one server: the principal the token speaks for, and the newest
    job.
    """

    principal: str = ""
    last_job: str = ""


def recall(key: str, environ: Mapping[str, str] | None = None) -> Memory:
    """What is remembered for a server's `key`; empty when nothing is."""
    try:
        found = json.loads((state_dir(environ) / "last.json").read_text(encoding="utf-8"))
        return Memory(**found.get(key, {}))
    except (OSError, ValueError, TypeError, AttributeError):
        return Memory()


def remember(key: str, memory: Memory, environ: Mapping[str, str] | None = None) -> None:
    """Remember it, best effort: a home that cannot be written changes nothing for the caller."""
    path = state_dir(environ) / "last.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known[key] = {"principal": memory.principal, "last_job": memory.last_job}
    with contextlib.suppress(InvalidSpec):
        _write_private(path, json.dumps(known, indent=1) + "\n")
