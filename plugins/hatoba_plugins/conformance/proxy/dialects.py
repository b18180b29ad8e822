"""How components name their calls, turn their pages and word their refusals. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, unquote, urlencode


@dataclass(frozen=True, slots=True)
class Call:
    """A request that came by; `target` is its path and query as they came."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> list[str]:
        """The parts of its path."""
        return [unquote(part) for part in self.target.partition("?")[0].strip("/").split("/")]

    @property
    def query(self) -> dict[str, str]:
        """Its query; of several values of a name the last."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def asking(self, **query: str) -> Call:
        """The same with this in its query."""
        path, _, told = self.target.partition("?")
        left = [(key, text) for key, text in parse_qsl(told, True) if key not in query]
        return replace(self, target=f"{path}?{urlencode([*left, *query.items()])}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that refuses; a text is no JSON."""

    status: int
    body: Mapping[str, Any] | str
    headers: Mapping[str, str] = field(default_factory=dict)

    def after(self, seconds: int | None) -> Refusal:
        """The same, with how long to wait."""
        if seconds is None:
            return self
        return replace(self, headers={**self.headers, "Retry-After": str(seconds)})


class Dialect(Protocol):
    """What a proxy has to know of a component."""

    throttled: Refusal
    """Too many calls."""
    unavailable: Refusal
    """It cannot answer now."""
    page_expired: Refusal
    """The token of a listing's next page is too old."""
    disguised: Refusal
    """A 404 of somebody before the component, who denies so: not how it says that nothing is."""

    def operation(self, call: Call) -> str:
        """What is called: the name that faults are ordered and calls counted by."""
        ...

    def streams(self, call: Call) -> bool:
        """Whether the answer is a stream without an end: a watch, a log that is followed."""
        ...

    def turns_page(self, call: Call) -> bool:
        """Whether it asks for another page than the first."""
        ...

    def in_pages_of(self, call: Call, size: int) -> Call:
        """The same listing by smaller pages; whatever is no listing stays as it is."""
        ...


# -- AWS -------------------------------------------------------------------------------------------


def aws_refusal(status: int, code: str, message: str) -> Refusal:
    """An error as AWS's JSON services word it."""
    return Refusal(status, {"__type": code, "message": message}, {"x-amzn-errortype": code})


class Aws:
    """Services that speak JSON: calls are named in small letters, `submitjob`, `runtask`."""

    throttled = aws_refusal(429, "TooManyRequestsException", "Too Many Requests")
    unavailable = aws_refusal(503, "ServiceUnavailableException", "Please try again later")
    page_expired = aws_refusal(400, "ClientException", "nextToken is expired")
    disguised = Refusal(404, "<html>404 Not Found</html>", {"Content-Type": "text/html"})

    def operation(self, call: Call) -> str:
        """The path's end, or the target of services that have one path only."""
        target = call.headers.get("X-Amz-Target", "")
        if target:
            return target.rpartition(".")[2].lower()
        return "tags" if "tags" in call.path else call.path[-1].lower()

    def streams(self, call: Call) -> bool:
        """None does."""
        return False

    def turns_page(self, call: Call) -> bool:
        """With a token."""
        return bool(_json(call.body).get("nextToken"))

    def in_pages_of(self, call: Call, size: int) -> Call:
        """By `maxResults`."""
        asked = _json(call.body)
        if not self.operation(call).startswith("list"):
            return call
        return replace(call, body=json.dumps({**asked, "maxResults": size}).encode())


def _json(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


# -- Kubernetes ------------------------------------------------------------------------------------


def kubernetes_refusal(status: int, reason: str, message: str) -> Refusal:
    """A Status as the API server answers it."""
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return Refusal(status, {**told, "message": message, "reason": reason, "code": status})


class Kubernetes:
    """Calls are named as rights are: `create jobs`, `watch pods`, `get jobs`, `follow log`."""

    throttled = kubernetes_refusal(429, "TooManyRequests", "too many requests, please try again")
    unavailable = kubernetes_refusal(503, "ServiceUnavailable", "the server is shutting down")
    page_expired = kubernetes_refusal(410, "Expired", "The provided continue parameter is too old")
    version_expired = kubernetes_refusal(410, "Expired", "too old resource version: 1 (2)")
    """What a watch from a version that is forgotten is answered with."""
    disguised = Refusal(404, "404 page not found\n", {"Content-Type": "text/plain"})
    _verbs: ClassVar = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}

    def operation(self, call: Call) -> str:
        """A verb and a resource."""
        parts, query = call.path, call.query
        at = parts.index("namespaces") + 2 if "namespaces" in parts[:-2] else len(parts) - 1
        if parts[-1] == "log":
            return "follow log" if query.get("follow") == "true" else "get log"
        if query.get("watch") == "true":
            return f"watch {parts[at]}"
        named = len(parts) > at + 1
        return f"{self._verbs.get(call.method) or ('get' if named else 'list')} {parts[at]}"

    def streams(self, call: Call) -> bool:
        """Watches, and logs that are followed."""
        return self.operation(call).startswith(("watch ", "follow "))

    def turns_page(self, call: Call) -> bool:
        """With `continue`."""
        return bool(call.query.get("continue"))

    def in_pages_of(self, call: Call, size: int) -> Call:
        """By `limit`."""
        return call.asking(limit=str(size)) if self.operation(call).startswith("list ") else call


# -- Docker ----------------------------------------------------------------------------------------


def docker_refusal(status: int, message: str) -> Refusal:
    """An error as the engine words it."""
    return Refusal(status, {"message": message})


class Docker:
    """The engine's API: `create containers`, `start containers`, `get containers`, `get events`.

    Connections that are taken over for other than HTTP (attach, exec) are not for a proxy.
    """

    throttled = docker_refusal(429, "toomanyrequests: rate limit exceeded")
    unavailable = docker_refusal(503, "the engine is shutting down")
    page_expired = docker_refusal(400, "it has no pages")
    disguised = Refusal(404, "404 page not found\n", {"Content-Type": "text/plain"})
    _version = re.compile(r"v\d+\.\d+")
    _verbs: ClassVar = {"DELETE": "delete", "PUT": "put", "HEAD": "head"}

    def operation(self, call: Call) -> str:
        """What is done, and to which kind of thing."""
        parts = call.path[1:] if self._version.fullmatch(call.path[0]) else call.path
        if len(parts) > 1 and parts[-1] != "json" and call.method in ("GET", "POST"):
            return f"{parts[-1]} {parts[0]}"
        if call.method in self._verbs:
            return f"{self._verbs[call.method]} {parts[0]}"
        return f"{'list' if parts[1:] == ['json'] else 'get'} {parts[0]}"

    def streams(self, call: Call) -> bool:
        """Events, logs that are followed, waiting for an end, and progress of a pull."""
        operation = self.operation(call)
        follows = operation == "logs containers" and call.query.get("follow", "0") not in ("0", "")
        return follows or operation in ("get events", "wait containers", "create images")

    def turns_page(self, call: Call) -> bool:
        """It has no pages."""
        return False

    def in_pages_of(self, call: Call, size: int) -> Call:
        """It has no pages."""
        return call
