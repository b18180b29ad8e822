"""One model behind HTTP: loaded in a thread, ready once it has proved itself, then drained."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

from hatoba import golden, handlers
from hatoba.golden import Case
from hatoba.handlers import ExampleRefused, Handler, HandlerError, HandlerFailed, Payload
from hatoba.replica_names import HEADER
from hatoba_worker.serving.answering import Outcome, Question, answer, failure
from hatoba_worker.serving.batching import Asked, Batcher, Full, Threads
from hatoba_worker.serving.config import Config, Example
from hatoba_worker.serving.http import Abandon, Connection, Headers, Reply, Request, Respond
from hatoba_worker.serving.keeping import Keeping
from hatoba_worker.serving.metrics import MEDIA_TYPE, Metrics
from hatoba_worker.serving.proving import Proving
from hatoba_worker.serving.tls import Gate

HANDLER_FAILED = 3
CANNOT_LISTEN = 71
PORT_IN_USE = 98

SWEEP_SECONDS = 0.1
QUIET_SECONDS = 0.5
FLUSH_SECONDS = 2.0
# Beside the requests that are answered or wait: those that are read, and clients that keep theirs.
SPARE_CONNECTIONS = 448
SPARE_FILES = 512
_GET = ("GET", "HEAD")
TRACE_ID = "hatoba-trace-id"
"""Header by which a prediction that was kept can be explained."""
_FORM = "application/x-www-form-urlencoded"

Phase = Literal["loading", "checking", "ready", "ending", "failed"]


class Loaded(NamedTuple):
    """A handler, and the model's example and golden cases."""

    handler: Handler
    example: Payload | None
    cases: tuple[Case, ...]


class CannotListen(Exception):
    """The port is not to be had; `code` is the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ModelServer:
    """Serves one model until it is told to end.

    It is well while a thread is free now and then, and ready once the model has answered its
    example, and its golden cases as expected.
    """

    def __init__(self, config: Config) -> None:
        limits = config.limits
        self.max_body_bytes = limits.max_body_bytes
        self.read_seconds = limits.read_seconds
        self.headers: Headers = ((HEADER, config.name),) if config.name else ()
        self._config = config
        self._gate = _gate(config)
        self._keeping = Keeping(config.keep, Random()) if config.keep is not None else None
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(limits.concurrency)
        self._handler: Handler | None = None
        self._batcher = Batcher(
            self._threads,
            self._answer,
            limits,
            config.batching,
            lambda size: self._metrics.batch.add(size),
            self._loop,
        )
        self._metrics = Metrics(
            {
                "in_flight": lambda: self._batcher.in_flight,
                "queued": lambda: self._batcher.queued,
                "connections": lambda: len(self._connections),
                "ready": lambda: self.ready,
            }
        )
        together = min(config.batching.max_batch, limits.max_queue)
        self._proving = Proving(self._threads, self._batcher, self._loop, together, self._proved)
        self._phase: Phase = "loading"
        self._why = failure(503, "loading", f"the handler {config.handler} is being loaded")
        self._connections: set[Connection] = set()
        self._most_connections = limits.max_queue + SPARE_CONNECTIONS
        _make_room(self._most_connections + SPARE_FILES)
        self._last_asked = self._loop.time()
        self._told = asyncio.Event()
        self._quiet = asyncio.Event()
        self._empty = asyncio.Event()
        self._signals = 0
        self._input_type = config.example.media_type if config.example else handlers.JSON
        self._model: Headers = (("hatoba-model", config.model),) if config.model else ()

    @property
    def ready(self) -> bool:
        """What `/readyz` says."""
        return self._phase == "ready" and not self._stuck(self._config.limits.timeout_seconds)

    @property
    def busy(self) -> bool:
        """Whether a thread still works, so that the interpreter cannot end in order."""
        return self._batcher.in_flight > 0 or self._phase == "loading"

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self._phase in ("ending", "failed")

    async def run(self, announce: Callable[[str, int], None]) -> int:
        """Serve until told to end; returns the exit code. `announce` hears where it listens.

        Raises CannotListen.
        """
        server = await self._listen()
        host, port = server.sockets[0].getsockname()[:2]
        announce(host, port)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.end)
        async with asyncio.TaskGroup() as tasks:
            sweep = tasks.create_task(self._sweep(), name="sweep connections")
            self._threads.call(self._load, self._loaded)
            await self._told.wait()
            await self._drain(server)
            sweep.cancel()
        return HANDLER_FAILED if self._phase == "failed" else 0

    def end(self) -> None:
        """Be ready no more, finish what is begun, then return; told twice, return at once."""
        self._signals += 1
        self._proving.end()
        if self._phase != "failed":
            self._phase = "ending"
            self._why = failure(503, "ending", "the server is about to end")
        self._last_asked = self._loop.time()
        self._told.set()
        if self._signals > 1:
            self._quiet.set()
            self._empty.set()

    async def _listen(self) -> asyncio.Server:
        host, port = self._config.host, self._config.port
        try:
            return await self._loop.create_server(
                lambda: Connection(self),
                host,
                port,
                backlog=1024,
                reuse_address=True,
                ssl=self._gate.context if self._gate is not None else None,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                text = f"port {port} of {host} is in use: choose another, or 0 for a free one"
                raise CannotListen(text, PORT_IN_USE) from error
            text = f"cannot listen on port {port} of {host}: {error}"
            raise CannotListen(text, CANNOT_LISTEN) from error

    async def _drain(self, server: asyncio.Server) -> None:
        """Go on answering until nobody asks any more, or until the time for that is over."""
        if self._phase == "ending":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.drain_seconds):
                    await self._quiet.wait()
        server.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        # Answers on their way arrive; a thread that hangs has none.
        flush = 0.0 if self._batcher.in_flight or not self._connections else FLUSH_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush):
                await self._empty.wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            if self._gate is not None:
                self._gate.refresh(now)
            for connection in list(self._connections):
                connection.sweep(now)
            if self.ending and self._is_quiet(now):
                self._quiet.set()
            if not self._connections:
                self._empty.set()

    def _is_quiet(self, now: float) -> bool:
        """Nobody asks any more: that it was so before it was told to end says nothing."""
        if self._batcher.in_flight or now - self._last_asked <= QUIET_SECONDS:
            return False
        return not any(connection.begun for connection in self._connections)

    # -- the model ------------------------------------------------------------------------------

    def _load(self) -> Loaded | HandlerError:
        config = self._config
        try:
            handler = handlers.load(config.handler, config.code_dir, config.model_dir)
            example = _read(config.example) if config.example else None
            return Loaded(handler, example, golden.read(config.model_dir, config.golden))
        except HandlerError as error:
            return error
        except BaseException as error:  # noqa: BLE001 - a thread that ends would not be missed
            return HandlerFailed(handlers.last_line(error))

    def _loaded(self, found: Loaded | HandlerError) -> None:
        if self.ending:
            return
        if isinstance(found, HandlerError):
            self._phase = "failed"
            self._why = failure(503, found.kind, str(found))
            _note(kind=found.kind, error=str(found))
            self._told.set()
            return
        self._handler = found.handler
        self._phase = "checking"
        self._why = failure(503, "checking", "the model's example is being answered")
        self._proving.begin(found.example, found.cases)

    def _proved(self, refused: Outcome | None) -> None:
        if refused is None:
            self._phase = "ready"
            return
        self._why = refused
        _note(kind=refused.kind, error=refused.error)

    def _answer(self, questions: Sequence[Question]) -> list[Outcome]:
        assert self._handler is not None
        try:
            return answer(self._handler, questions)
        except BaseException as error:  # noqa: BLE001 - a thread that ends would not be missed
            line = handlers.last_line(error)
            return [failure(500, "predict_failed", line) for _ in questions]

    def _stuck(self, limit: float) -> bool:
        return self._batcher.stuck_seconds() > limit

    # -- requests -------------------------------------------------------------------------------

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Whether who is at the other end may ask here at all."""
        return self._gate is None or self._gate.admits(transport)

    def opened(self, connection: Connection) -> bool:
        """A connection came; False when there are too many."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self._most_connections

    def closed(self, connection: Connection) -> None:
        """A connection went."""
        self._connections.discard(connection)

    def refused(self, reply: Reply) -> None:
        """A request was answered that was none."""
        self._count(Question(Payload(b"", "")), reply.outcome, 0.0)

    def respond(self, request: Request, respond: Respond) -> Abandon | None:
        """Answer once, now or later."""
        match request.path:
            case "/predict":
                return self._asked(request, respond)
            case "/healthz":
                self._look(request, respond, self._health())
            case "/readyz":
                self._look(request, respond, self._readiness())
            case "/metrics":
                told = Payload(self._metrics.text().encode(), MEDIA_TYPE)
                self._look(request, respond, Outcome(200, told))
            case _:
                paths = "/predict, /healthz, /readyz and /metrics"
                text = f"there is no {request.path!r} here: only {paths}"
                respond(Reply(failure(404, "not_found", text)))
        return None

    def _look(self, request: Request, respond: Respond, outcome: Outcome) -> None:
        if request.method in _GET:
            respond(Reply(outcome))
            return
        respond(_wrong_method(request, ", ".join(_GET)))

    def _health(self) -> Outcome:
        limit = 2 * self._config.limits.timeout_seconds
        if self._stuck(limit):
            text = f"no prediction has ended for {self._batcher.stuck_seconds():.0f} s"
            return failure(503, "stuck", text)
        return Outcome(200, Payload(b'{"status":"ok"}', handlers.JSON))

    def _readiness(self) -> Outcome:
        if self.ready:
            return Outcome(200, Payload(b'{"status":"ready"}', handlers.JSON))
        if self._phase == "ready":
            return failure(503, "stuck", "all threads are at predictions that are over their time")
        return self._why

    def _asked(self, request: Request, respond: Respond) -> Abandon | None:
        if request.method != "POST":
            respond(_wrong_method(request, "POST"))
            return None
        began = self._last_asked = self._loop.time()
        question = Question(Payload(request.body, self._media_type(request)), request.trace)
        if self._handler is None or self._phase == "checking":
            self._reply(question, self._why, began, respond)
            return None
        asked = Asked(question, lambda outcome: self._reply(question, outcome, began, respond))
        try:
            self._batcher.ask(asked)
        except Full:
            text = f"{self._batcher.in_flight} requests are being answered: try again (max_queue)"
            self._reply(question, failure(429, "queue_full", text), began, respond)
            return None
        return lambda: self._batcher.abandon(asked)

    def _media_type(self, request: Request) -> str:
        """What the body is; what curl says of each body unless told tells nothing."""
        if not request.media_type or request.media_type.startswith(_FORM):
            return self._input_type
        return request.media_type

    def _reply(self, question: Question, outcome: Outcome, began: float, respond: Respond) -> None:
        again = (("retry-after", "1"),) if outcome.status in (429, 503) else ()
        seconds = self._loop.time() - began
        self._count(question, outcome, seconds)
        kept = self._keeping.note(question, outcome, seconds) if self._keeping else ""
        trace = ((TRACE_ID, kept),) if kept else ()
        respond(Reply(outcome, (*self._model, *trace, *again)))

    def _count(self, question: Question, outcome: Outcome, seconds: float) -> None:
        self._metrics.answered(outcome.status, seconds)
        if outcome.status >= 400:
            _note(
                status=outcome.status,
                kind=outcome.kind,
                error=outcome.error,
                seconds=round(seconds, 6),
                traceparent=question.trace,
            )


def _gate(config: Config) -> Gate | None:
    """Raises CannotListen."""
    if config.tls is None:
        return None
    try:
        return Gate(config.tls)
    except OSError as error:
        raise CannotListen(f"cannot speak TLS: {error}", CANNOT_LISTEN) from error


def _make_room(files: int) -> None:
    """Let the process open so many files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read(example: Example) -> Payload:
    try:
        return Payload(example.path.read_bytes(), example.media_type)
    except OSError as error:
        raise ExampleRefused(f"the model's example cannot be read: {error}") from error


def _wrong_method(request: Request, allowed: str) -> Reply:
    text = f"{request.path} takes {allowed}, not {request.method}"
    return Reply(failure(405, "method_not_allowed", text), (("allow", allowed),))


def _note(**fields: object) -> None:
    """One line of JSON on stderr; a disk that is full loses lines and ends nothing."""
    line = json.dumps({"t": round(time.time(), 3), **fields}, ensure_ascii=False) + "\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), line.encode(errors="replace"))


def serve(config: Config, announce: Callable[[str, int], None]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 3 when the handler cannot be loaded.

    71 and 98: it cannot listen, the latter because the port is in use.
    """
    # A thread that predicts and the loop take turns: by default each would wait 5 ms for the other.
    sys.setswitchinterval(0.0005)
    try:
        code, busy = asyncio.run(_serve(config, announce))
    except CannotListen as error:
        sys.stderr.write(f"hatoba serving: {error}\n")
        return error.code
    if busy:
        # A thread that hangs would be torn away in the middle of the interpreter's end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


async def _serve(config: Config, announce: Callable[[str, int], None]) -> tuple[int, bool]:
    server = ModelServer(config)
    code = await server.run(announce)
    return code, server.busy
