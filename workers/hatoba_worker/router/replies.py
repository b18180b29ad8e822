"""What the router answers itself: refusals in JSON that say why and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web


class Refusal(Exception):
    """A request that gets no prediction. `retry_after` in seconds, 0: asking again does not help.

    `close`: the client has not sent all of its body, so that nothing else can follow on its
    connection.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        remedy: str = "",
        *,
        retry_after: int = 0,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.retry_after = retry_after
        self.close = close

    def reply(self, headers: Mapping[str, str]) -> web.Response:
        """As it is sent."""
        body = {"error": self.message, "kind": self.kind, "remedy": self.remedy}
        text = json.dumps({key: value for key, value in body.items() if value}) + "\n"
        reply = web.Response(
            status=self.status, body=text.encode(), content_type="application/json"
        )
        reply.headers.update(headers)
        if self.retry_after:
            reply.headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            reply.headers["WWW-Authenticate"] = "Bearer"
        if self.close:
            reply.force_close()
        return reply


def no_such_path(path: str) -> Refusal:
    """Nothing answers there."""
    return Refusal(
        404,
        "path_not_found",
        f"nothing answers at {path[:256]!r}",
        "send POST /NAME/predict, or /p/PROJECT/NAME/predict in another project than `default`",
    )


def no_such_deployment(path: str) -> Refusal:
    """The table has nothing of that name."""
    return Refusal(
        404,
        "deployment_not_found",
        f"there is no deployment at {path[:256]!r}",
        "`hatoba deployments list` shows those there are",
    )


def wrong_method(method: str, allowed: str) -> Refusal:
    """The path is right and the method is not."""
    return Refusal(
        405, "method_not_allowed", f"{method} is not answered here", f"use {allowed}", close=True
    )


def no_token() -> Refusal:
    """Nothing was shown."""
    return Refusal(
        401,
        "token_missing",
        "the request carries no token",
        "send `authorization: Bearer TOKEN`; `hatoba tokens create --role predict` makes one",
        close=True,
    )


def unknown_token() -> Refusal:
    """What was shown opens nothing (any more)."""
    return Refusal(
        401,
        "token_unknown",
        "the token is not known, has expired, or may not ask for predictions",
        "use one of the role predict or user",
        close=True,
    )


def other_deployments_token(opens: str) -> Refusal:
    """The token is for another deployment."""
    return Refusal(
        403,
        "token_of_another_deployment",
        f"the token opens {opens} alone",
        "use one that was made for this deployment",
        close=True,
    )


def too_large(limit: int) -> Refusal:
    """The body is over the deployment's limit."""
    return Refusal(
        413,
        "body_too_large",
        f"the body is larger than {limit:,} bytes",
        "send less, or raise the deployment's `limits.max_body_bytes`",
        close=True,
    )


def too_slow(seconds: float) -> Refusal:
    """The client does not send."""
    return Refusal(
        408,
        "client_too_slow",
        f"nothing of the body came for {seconds:g} s, or all of it did not come in time",
        "send the body without a pause",
        close=True,
    )


def all_busy(replicas: int, limit: int) -> Refusal:
    """Every ready replica has as much as it may keep waiting."""
    return Refusal(
        429,
        "all_replicas_busy",
        f"all {replicas} ready replicas have {limit} requests each",
        "ask again later; more replicas take more: `hatoba deployments scale`",
        retry_after=1,
    )


def none_ready(name: str) -> Refusal:
    """No replica can take it."""
    return Refusal(
        503,
        "no_replica_ready",
        f"no replica of {name} is ready",
        f"ask again later; `hatoba deployments get {name}` says why",
        retry_after=1,
    )


def none_answers(name: str, why: str) -> Refusal:
    """Replicas are in the table, and none of them could be reached: none had the request."""
    return Refusal(
        503,
        "no_replica_reached",
        f"no replica of {name} could be reached: {why}",
        f"ask again later; `hatoba deployments get {name}` says why",
        retry_after=1,
    )


def astray(replica: str) -> Refusal:
    """Another one answered in a replica's place, and the body is not kept for a second try."""
    return Refusal(
        503,
        "replica_gone",
        f"the replica {replica} is gone: another one answers at its address",
        "ask again; the body was too large to be kept and sent to another replica",
        retry_after=1,
    )


def died(replica: str, why: str) -> Refusal:
    """A replica took the request and went away with it."""
    return Refusal(
        502,
        "replica_died",
        f"the replica {replica} ended while it had the request: {why}",
        "it is not sent again by itself, since it may have had effects; ask again if it may be",
    )


def timed_out(seconds: float) -> Refusal:
    """The replica has not answered in the deployment's time."""
    return Refusal(
        504,
        "prediction_timed_out",
        f"the replica did not answer within {seconds:g} s",
        "ask for less at once, or raise the deployment's `limits.timeout`",
    )


def broken_body(why: str) -> Refusal:
    """The body is no HTTP."""
    return Refusal(
        400,
        "body_broken",
        f"the body cannot be read: {why[:256]}",
        "send it with a content-length, or in chunks as HTTP/1.1 has them",
        close=True,
    )
