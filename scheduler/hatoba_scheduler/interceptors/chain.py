"""The server's interceptor: everything that happens around a call, in one pass.

Order: method known, admission, token, role; then, in the call's own handler, time left, size,
rules, the servicer, and the status. A refused call's message is never read. Who claims to be a
device is looked at once more, by the certificate of the connection, before anything is read.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from hatoba.scopes import lapse
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.device_credentials import DeviceCaller, DeviceClaim
from hatoba_scheduler.auth.roles import METHOD_ACCESS, OPEN, OPERATE, Access, Role, may_change
from hatoba_scheduler.auth.runner_scopes import RunnerToken
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import (
    DeadlineExceeded,
    HatobaError,
    Internal,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
    shown,
)
from hatoba_scheduler.interceptors import failures
from hatoba_scheduler.interceptors.admission import Admission
from hatoba_scheduler.interceptors.context import CallContext, current_call, enter_call
from hatoba_scheduler.interceptors.denials import Denials
from hatoba_scheduler.interceptors.options import MAX_MESSAGE_BYTES
from hatoba_scheduler.interceptors.principals import NEW_JOBS, PrincipalLimits, Principals
from hatoba_scheduler.interceptors.requests import (
    CheckedContext,
    CheckedStream,
    checked,
    only_message,
    reader,
)
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import (
    SERVER,
    SpanContext,
    Tracer,
    parse_traceparent,
)

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.types import Context, Handler

MIN_SECONDS_LEFT = 0.05
UNHURRIED = frozenset(
    {
        "hatoba.v1.AdminService/AdoptStore",
        "hatoba.v1.AdminService/CheckStore",
        "hatoba.v1.AdminService/CreateBackup",
        "hatoba.v1.ArtifactService/CollectGarbage",
    }
)
"""What takes as long as there is much: only its caller's deadline ends it."""
REQUEST_ID = "x-request-id"
_UNKNOWN = "other"
_NO_TRACE = SpanContext("0" * 32, "0" * 16, sampled=False)
_REQUEST_ID = re.compile(r"[!-~]{1,128}")

Behaviour = Callable[[Any, Any], Any]
NewJobs = Callable[[Any], int]


class _Method(NamedTuple):
    """One method: its name without slash, who may call it, its wrapped handler."""

    name: str
    access: Access
    changes: bool
    streams: bool
    begins_trace: bool
    handler: Handler


class _UnaryLimits(NamedTuple):
    """Of a method: seconds of a call, None for as long as its caller waits; the jobs it makes."""

    longest: float | None
    new_jobs: NewJobs | None


class CallLimits(NamedTuple):
    """Bytes of one message either way, seconds of a unary call, and what one principal may ask."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_unary_seconds: float = 60.0
    principals: PrincipalLimits = PrincipalLimits()


class Front(grpc.aio.ServerInterceptor):
    """Stands before every servicer. `access` maps full method names to roles that may call them."""

    def __init__(
        self,
        authenticator: Authenticator,
        tracer: Tracer,
        metrics: ServerMetrics,
        admission: Admission,
        *,
        access: Mapping[str, Access] = METHOD_ACCESS,
        limits: CallLimits | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._tracer = tracer
        self._metrics = metrics
        self._admission = admission
        self._denials = Denials(time.monotonic)
        self._access = access
        self._max_bytes, self._max_seconds, principals = limits or CallLimits()
        self._principals = Principals(principals)
        self._methods: dict[str, _Method] = {}
        self._proving_first: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of an admitted call; for a refused one, a handler that only refuses."""
        call = CallContext(_UNKNOWN, "", _NO_TRACE)
        call.started = time.perf_counter()
        try:
            method = await self._method(continuation, handler_call_details)
            call.method = method.name
            self._admit(call, method, handler_call_details.invocation_metadata)
        except HatobaError as error:
            return self._refusal(error, call)
        call.trailers.append((REQUEST_ID, call.request_id))
        enter_call(call)
        if isinstance(call.token, DeviceClaim):
            return self._for_claims(method)
        return method.handler

    # -- before the handler ---------------------------------------------------------------------
    async def _method(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> _Method:
        known = self._methods.get(details.method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None:
            raise Unimplemented(f"this server has no method {shown(details.method)}")
        access = self._access.get(details.method, OPERATE)
        changes = may_change(access)
        streams = handler.request_streaming or handler.response_streaming
        name = details.method.removeprefix("/")
        begins_trace = changes and not streams
        wrapped = self._wrapped(handler, name)
        method = _Method(name, access, changes, streams, begins_trace, wrapped)
        self._methods[details.method] = method
        return method

    def _admit(self, call: CallContext, method: _Method, metadata: Any) -> None:
        authorization = traceparent = None
        for key, value in metadata:
            if key == "authorization":
                authorization = value
            elif key == "traceparent":
                traceparent = value
            elif key == REQUEST_ID:
                call.request_id = _usable(value)
        if method.access is not OPEN:
            self._admission.check(changes=method.changes, method=method.name)
            call.token = self._authenticator.authenticate(authorization)
            if not isinstance(call.token, DeviceClaim):
                self._allow(call.token, method)
        self._trace(call, method, traceparent)

    def _allow(self, token: TokenRecord, method: _Method) -> None:
        """Raise unless who is known by this token may call the method now."""
        if token.role not in method.access:
            raise _role_refused(token, method)
        if isinstance(token, RunnerToken | DeviceCaller):
            token.check_method(method.name)
        self._principals.admit(token, changes=method.changes, stream=method.streams)

    def _for_claims(self, method: _Method) -> Handler:
        """What answers those who only claim to be a device."""
        handler = self._proving_first.get(method.name)
        if handler is None:
            handler = self._proving_first[method.name] = self._proving(method)
        return handler

    def _proving(self, method: _Method) -> Handler:
        """The method's handler behind a look at who calls; of a refused call it reads nothing."""
        handler = method.handler
        ways = (handler.unary_unary, handler.unary_stream, handler.stream_unary)
        behaviour: Any = next((way for way in ways if way is not None), handler.stream_stream)

        async def prove(requests: Any, context: Context) -> None:
            call = current_call()
            try:
                self._prove(call, method, context)
            except HatobaError as error:
                self._metrics.refused(call.method, error.code.name)
                await failures.abort(error, call, context)
            given = requests if handler.request_streaming else await only_message(context)
            reply = await behaviour(given, context)
            if reply is not None:
                await context.write(reply)

        read, serialize = handler.request_deserializer, handler.response_serializer
        return grpc.stream_stream_rpc_method_handler(prove, read, serialize)

    def _prove(self, call: CallContext, method: _Method, context: Context) -> None:
        """Have the device that it is make the call, in place of the claim."""
        claim = call.token
        assert isinstance(claim, DeviceClaim), "who claims nothing proves nothing"
        try:
            call.token = claim.prove(context.auth_context())
            self._allow(call.token, method)
        except (Unauthenticated, PermissionDenied) as error:
            claim.denied(method.name, context, error.message)
            raise

    def _trace(self, call: CallContext, method: _Method, traceparent: str | None) -> None:
        """Join the caller's trace. Without one, only what changes something begins a kept trace."""
        call.start_ns = self._tracer.clock_ns()
        remote = parse_traceparent(traceparent)
        if remote is not None:
            call.parent_id = remote.span_id
            call.trace = self._tracer.accept(remote)
        else:
            call.trace = self._tracer.root(sampled=None if method.begins_trace else False)
        call.request_id = call.request_id or call.trace.span_id

    def _refusal(self, error: HatobaError, call: CallContext) -> Handler:
        """A handler that reads nothing; unnamed callers leave no span, so they cannot fill it."""
        call.trace = self._tracer.root(sampled=False)
        call.request_id = call.request_id or call.trace.span_id
        call.trailers.append((REQUEST_ID, call.request_id))
        self._metrics.refused(call.method, error.code.name)

        async def refuse(requests: Any, context: Context) -> None:
            self._denials.refused(error, call, context.peer())
            await failures.abort(error, call, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

    # -- around the handler -----------------------------------------------------------------------
    def _wrapped(self, handler: Handler, name: str) -> Handler:
        deserialize = handler.request_deserializer
        read = reader(deserialize, self._max_bytes) if deserialize else None
        serialize = handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            streams = self._streaming(handler.stream_stream, from_client=True)
            return grpc.stream_stream_rpc_method_handler(streams, read, serialize)
        if handler.request_streaming:
            gathers = self._gathering(handler.stream_unary, serialize)
            return grpc.stream_unary_rpc_method_handler(gathers, read, None)
        if handler.response_streaming:
            sends = self._streaming(handler.unary_stream, from_client=False)
            return grpc.unary_stream_rpc_method_handler(sends, read, serialize)
        longest = None if name in UNHURRIED else self._max_seconds
        limits = _UnaryLimits(longest, NEW_JOBS.get(name))
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, serialize, limits), read, None
        )

    def _unary(self, behaviour: Any, serialize: Any, limits: _UnaryLimits) -> Behaviour:
        longest, new_jobs = limits

        async def unary(request: Any, context: Context) -> bytes:
            call = current_call()
            self._begin(call)
            self._admission.enter()
            self._enter(call, stream=False)
            try:
                remaining: float | None = context.time_remaining()
                request = checked(request)
                if new_jobs is not None and call.token is not None:
                    self._principals.submit(call.token, new_jobs(request))
                if remaining is not None and remaining < MIN_SECONDS_LEFT:
                    raise _too_short(remaining)
                if longest is not None and (remaining is None or remaining > longest):
                    response = await _clamped(longest, behaviour(request, context))
                else:
                    response = await behaviour(request, context)
                reply = self._reply(response, serialize)
            except (Exception, asyncio.CancelledError) as failure:
                await self._fail(failure, call, context)
                raise
            finally:
                self._admission.leave()
                self._leave(call, stream=False)
            self._succeed(call, context)
            return reply

        return unary

    def _streaming(self, behaviour: Any, *, from_client: bool) -> Behaviour:
        async def stream(request: Any, context: Context) -> None:
            call = current_call()
            self._begin(call)
            self._enter(call, stream=True)
            try:
                given = CheckedStream(context) if from_client else checked(request)
                seen: Any = CheckedContext(context) if from_client else context
                await self._while_authorised(_handled(behaviour, given, seen, context), call)
            except (Exception, asyncio.CancelledError) as failure:
                await self._fail(failure, call, context)
                raise
            finally:
                self._leave(call, stream=True)
            self._succeed(call, context)

        return stream

    def _gathering(self, behaviour: Any, serialize: Any) -> Behaviour:
        async def gather(requests: Any, context: Context) -> bytes:
            call = current_call()
            self._begin(call)
            self._enter(call, stream=True)
            try:
                handled = behaviour(CheckedStream(context), CheckedContext(context))
                reply = self._reply(await self._while_authorised(handled, call), serialize)
            except (Exception, asyncio.CancelledError) as failure:
                await self._fail(failure, call, context)
                raise
            finally:
                self._leave(call, stream=True)
            self._succeed(call, context)
            return reply

        return gather

    async def _while_authorised(self, handled: Coroutine[Any, Any, Any], call: CallContext) -> Any:
        """Run a stream until it ends, or its token does."""
        token = call.token
        if token is None:
            return await handled
        scope = asyncio.timeout(self._authenticator.seconds_left(token))
        forget = self._authenticator.on_revoked(token.id, partial(lapse, scope))
        try:
            async with scope:
                self._authenticator.verify(token)
                return await handled
        except TimeoutError:
            if scope.expired():
                raise self._authenticator.ended(token) from None
            raise
        finally:
            forget()
            handled.close()

    def _reply(self, response: Any, serialize: Any) -> bytes:
        raw: bytes = serialize(response) if serialize else response
        if len(raw) > self._max_bytes:
            raise ResourceExhausted(
                f"the reply would have {len(raw):,} bytes, over the limit of {self._max_bytes:,}; "
                "ask for a smaller page",
                reason=Reason.MESSAGE_TOO_LARGE,
                retry_after=0,
            )
        return raw

    def _enter(self, call: CallContext, *, stream: bool) -> None:
        if call.token is not None:
            self._principals.enter(call.token, stream=stream)

    def _leave(self, call: CallContext, *, stream: bool) -> None:
        if call.token is not None:
            self._principals.leave(call.token, stream=stream)

    # -- how it ended ---------------------------------------------------------------------------
    def _begin(self, call: CallContext) -> None:
        self._metrics.started(call.method)

    def _succeed(self, call: CallContext, context: Context) -> None:
        given = context.trailing_metadata()
        context.set_trailing_metadata((*given, *call.trailers) if given else tuple(call.trailers))
        code: grpc.StatusCode | None = context.code()
        self._end(call, "OK" if code is None else code.name, None)

    async def _fail(self, failure: BaseException, call: CallContext, context: Context) -> None:
        """Give the call its status and raise grpc's own exception; returns if that was done."""
        if isinstance(failure, grpc.aio.BaseError):
            # Aborted by the servicer itself, or the connection broke under a write.
            code = context.code() if isinstance(failure, grpc.aio.AbortError) else None
            self._end(call, code.name if code else "CANCELLED", None)
            return
        error = failures.as_error(failure, call, context)
        if isinstance(call.token, DeviceCaller):
            call.token.sent(error, call.method, context.peer())
        self._denials.refused(error, call, context.peer())
        cancelled = isinstance(failure, asyncio.CancelledError)
        code_name = (
            "CANCELLED" if cancelled and error.reason is Reason.DRAINING else error.code.name
        )
        self._end(call, code_name, error)
        await failures.abort(error, call, context)

    def _end(self, call: CallContext, code: str, error: HatobaError | None) -> None:
        self._metrics.ended(call.method, code, time.perf_counter() - call.started)
        if isinstance(error, Internal):
            self._metrics.errors.inc()
        if call.trace.sampled:
            self._emit(call, error, code)

    def _emit(self, call: CallContext, error: HatobaError | None, code: str = "") -> None:
        code = code or (error.code.name if error else "OK")
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": call.method,
            "rpc.response.status_code": code,
        }
        self._tracer.emit(
            call.trace,
            call.method,
            start_ns=call.start_ns,
            parent_id=call.parent_id,
            kind=SERVER,
            error="" if code == "OK" else f"{code}: {error.reason}" if error else code,
            attributes=attributes,
        )


async def _clamped(longest: float, handled: Coroutine[Any, Any, Any]) -> Any:
    scope = asyncio.timeout(longest)
    try:
        async with scope:
            return await handled
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"the call did not end within the server's {longest:g} s") from error


def _handled(behaviour: Any, given: Any, seen: Any, context: Context) -> Coroutine[Any, Any, Any]:
    """A handler of either style, to be awaited."""
    handled: Any = behaviour(given, seen)
    return _send_all(handled, context) if hasattr(handled, "__aiter__") else handled


async def _send_all(replies: Any, context: Context) -> None:
    """Send what a generator yields. grpc never closes an abandoned one: we do."""
    async with aclosing(replies):
        async for reply in replies:
            await context.write(reply)
            del reply  # a quiet stream keeps nothing


def _usable(request_id: Any) -> str:
    return request_id if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id) else ""


def _too_short(remaining: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{remaining * 1000:.0f} ms are left, too little to begin; allow more time",
        reason=Reason.DEADLINE_TOO_SHORT,
    )


def _role_refused(token: TokenRecord, method: _Method) -> PermissionDenied:
    needed = " or ".join(sorted(role.name.lower() for role in method.access))
    return PermissionDenied(
        f"{token.principal} has the role {Role(token.role).name.lower()}; {method.name} needs "
        f"{needed}: use another token, or ask an administrator for one",
        metadata={"method": method.name, "role": Role(token.role).name, "needed": needed},
    )
