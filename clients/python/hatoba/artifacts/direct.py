"""Requests to an object store at addresses that a server signed. Everything here blocks."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import urlsplit

from hatoba.artifacts.manifest import PIECE_BYTES
from hatoba.errors import Unavailable

TRIES = 3
FIRST_WAIT = 0.2
TIMEOUT_SECONDS = 60.0
_CHANGED = frozenset({404, 409, 412})


class Unreachable(Unavailable):
    """The object store does not answer here, or refuses the address that the server gave."""


class Changed(Exception):
    """The object is not the one that was asked for, or is gone; says what was found."""


def put(url: str, data: bytes) -> None:
    """Put an object whole, some times if need be. Raises Unreachable."""
    for wait in _waits():
        try:
            request = urllib.request.Request(url, data=data, method="PUT")
            request.add_header("Content-Type", "application/octet-stream")
            with _open(request):
                return
        except (OSError, http.client.HTTPException) as error:
            _pause(wait, error, url)


def get(url: str, size: int, etag: str = "") -> Iterator[bytes]:
    """An object of this size, 1 MiB at a time; what broke off goes on where it broke.

    With an `etag`, only that very object. Raises Unreachable, and Changed for another one.
    """
    done = 0
    waits = _waits()
    # Of an empty object, too, it is asked whether it is the one.
    unseen = bool(etag)
    while done < size or unseen:
        try:
            with _open(_ranged(url, done, etag)) as reply:
                unseen = False
                _check(reply, done, size, etag)
                while data := reply.read(min(PIECE_BYTES, size - done)):
                    done += len(data)
                    yield data
            if done < size:
                raise http.client.IncompleteRead(b"", size - done)
        except urllib.error.HTTPError as error:
            if etag and error.code in _CHANGED:
                raise Changed(_found(url)) from None
            _pause(next(waits), error, url)
        except (OSError, http.client.HTTPException) as error:
            _pause(next(waits), error, url)


def _ranged(url: str, start: int, etag: str) -> urllib.request.Request:
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if etag:
        request.add_header("If-Match", f'"{etag}"')
    return request


def _check(reply: http.client.HTTPResponse, start: int, size: int, etag: str) -> None:
    """Raise Changed when what comes is not the object; OSError when it does not begin at start."""
    found = (reply.headers.get("ETag") or "").strip('"')
    if etag and found and found != etag:
        raise Changed(found)
    if start and reply.status != 206:
        raise OSError("the store sends no ranges")
    length = reply.headers.get("Content-Length")
    if etag and length is not None and int(length) != size - start:
        raise Changed(f"{found or etag} of {length} bytes")


def _found(url: str) -> str:
    """The entity tag of what lies there now, or that nothing does."""
    request = urllib.request.Request(url)
    request.add_header("Range", "bytes=0-0")
    try:
        with _open(request) as reply:
            return (reply.headers.get("ETag") or "another").strip('"')
    except urllib.error.HTTPError as error:
        # An empty object has no first byte, and tells its tag all the same.
        tag = (error.headers.get("ETag") or "").strip('"')
        return tag or ("none" if error.code == 404 else f"status {error.code}")
    except (OSError, http.client.HTTPException):
        return "another"


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    context = _context() if request.full_url.startswith("https:") else None
    reply: http.client.HTTPResponse = urllib.request.urlopen(
        request, timeout=TIMEOUT_SECONDS, context=context
    )
    return reply


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """The system's authorities, or those that the environment names for such stores."""
    named = os.environ.get("AWS_CA_BUNDLE")
    return ssl.create_default_context(cafile=named or None)


def _waits() -> Iterator[float | None]:
    """How long to wait after each failure; None: no more."""
    for number in range(TRIES - 1):
        yield FIRST_WAIT * 2**number
    while True:
        yield None


def _pause(wait: float | None, error: Exception, url: str) -> None:
    if wait is None:
        host = urlsplit(url).netloc
        raise Unreachable(
            f"the object store at {host} does not answer: {error}",
            remedy="check the network between this machine and the store, then try again: "
            "what arrived is not sent again",
        ) from None
    time.sleep(wait)
