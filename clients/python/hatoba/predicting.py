"""One prediction over HTTP, through a router. Standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import mimetypes
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO
from urllib.parse import urlsplit

from hatoba import errors
from hatoba.router_port import kept_address
from hatoba.settings import DEFAULT_PROJECT, Choice, data_dir, find_server, read_token
from hatoba.tracing import parse_traceparent

PIECE = 1 << 16
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 86_400.0
"""The deployment's own time-out ends a request long before."""
JSON = "application/json"
BYTES = "application/octet-stream"

_DEPLOYMENT = re.compile(r"((projects/(?P<project>[a-z0-9-]+)/)?deployments/)?(?P<name>[a-z0-9-]+)")
_BY_STATUS: dict[int, type[errors.HatobaError]] = {
    401: errors.NotAllowed,
    403: errors.NotAllowed,
    404: errors.NotFound,
    429: errors.Exhausted,
    502: errors.ServerError,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


@dataclass(frozen=True)
class Endpoint:
    """Where a deployment answers, and the token to show there."""

    url: str
    token: str = field(repr=False)
    ca_file: str = ""


@dataclass
class Reply:
    """A prediction: its model (`digits:7`), its trace id, and its bytes as they come."""

    model: str
    trace_id: str
    media_type: str
    pieces: Iterator[bytes]


def deployment_path(project: str, name: str) -> str:
    """`/reader`, or `/p/lab/reader` in another project; `name` may be a resource name. Raises
    InvalidSpec for anything else.
    """
    found = _DEPLOYMENT.fullmatch(name)
    if found is None:
        raise errors.InvalidSpec(
            f"{name!r} is not the name of a deployment",
            remedy="`hatoba deployments list` shows them; a model such as digits:7 is asked about "
            "a whole dataset, with --dataset",
        )
    project = found["project"] or project
    prefix = "" if project in ("", DEFAULT_PROJECT) else f"/p/{project}"
    return f"{prefix}/{found['name']}"


def embedded_endpoint(choice: Choice, path: str) -> Endpoint | None:
    """At the embedded router, which answers while the server is away too; None when another server
    is meant, or when there never was a router."""
    server, data = find_server(choice), data_dir()
    if server is not None and server.key != str(data.resolve()):
        return None
    address = kept_address(data)
    if not address:
        return None
    token = read_token(choice.token_file or str(data / "admin.token"))
    return Endpoint(f"http://{address}{path}", token)


def media_type_of(file: str) -> str:
    """What a file's ending says that it is; standard input (`-`) is taken for JSON."""
    if file == "-":
        return JSON
    return mimetypes.guess_type(file)[0] or BYTES


@contextmanager
def predict(endpoint: Endpoint, body: IO[bytes] | bytes, media_type: str) -> Iterator[Reply]:
    """Ask for a prediction; a HatobaError says why there is none."""
    parts = urlsplit(endpoint.url)
    connection = _connection(parts.netloc, parts.scheme == "https", endpoint.ca_file)
    headers = {"Authorization": f"Bearer {endpoint.token}", "Content-Type": media_type}
    headers |= _trace()
    try:
        response = _ask(connection, f"{parts.path}/predict", body, headers)
        if response.status >= 400:
            raise _refused(response)
        yield Reply(
            response.getheader("hatoba-model", ""),
            response.getheader("hatoba-trace-id", ""),
            response.getheader("Content-Type", BYTES),
            iter(lambda: response.read(PIECE), b""),
        )
    except (OSError, http.client.HTTPException) as error:
        raise errors.Unavailable(
            f"the router at {parts.netloc} does not answer: {str(error) or type(error).__name__}",
            remedy="it comes with the server: `hatoba server start`",
        ) from error
    finally:
        connection.close()


def _connection(address: str, tls: bool, ca_file: str) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(address, timeout=CONNECT_SECONDS)
    context = ssl.create_default_context(cafile=ca_file or None)
    return http.client.HTTPSConnection(address, timeout=CONNECT_SECONDS, context=context)


def _ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: IO[bytes] | bytes,
    headers: dict[str, str],
) -> http.client.HTTPResponse:
    """A file is sent as it is read: with its size where it has one, else in chunks."""
    size = len(body) if isinstance(body, bytes) else _size(body)
    if size is not None:
        headers["Content-Length"] = str(size)
    connection.connect()
    connection.sock.settimeout(ANSWER_SECONDS)
    # Refused before all was sent: the reply that says why may be there.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", path, body, headers)
    return connection.getresponse()


def _size(file: IO[bytes]) -> int | None:
    """Bytes of a plain file; None for a pipe, which ends when it ends."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _trace() -> dict[str, str]:
    known = os.environ.get("TRACEPARENT", "")
    return {"traceparent": known} if parse_traceparent(known) else {}


def _refused(response: http.client.HTTPResponse) -> errors.HatobaError:
    raw = response.read(PIECE)
    try:
        told = json.loads(raw)
        message, remedy = str(told["error"]), str(told.get("remedy", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, remedy = raw.decode(errors="replace")[:500] or response.reason, ""
    kind = _BY_STATUS.get(
        response.status,
        errors.InvalidRequest if response.status < 500 else errors.ServerError,
    )
    model, trace = response.getheader("hatoba-model", ""), response.getheader("hatoba-trace-id", "")
    told_of = [one for one in (model, f"trace {trace}" if trace else "") if one]
    behind = f" ({', '.join([str(response.status), *told_of])})"
    return kind(f"{message}{behind}", remedy=remedy)
