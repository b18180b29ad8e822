"""One JSON object a line on stderr, with the ids of the call that is being answered."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hatoba_scheduler.interceptors.context import call_or_none

_FRAMES = 40
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send our own logs and those of libraries to `stream` (stderr), from `level` on."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])


def _shared() -> list[Processor]:
    return [
        _call_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception,
    ]


def _call_ids(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    call = call_or_none()
    if call is not None:
        event.setdefault("trace_id", call.trace.trace_id)
        event.setdefault("span_id", call.trace.span_id)
        event.setdefault("request_id", call.request_id)
    return event


def _exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Name the frames without their source: reading source files would block the event loop."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given
    error = error[1] if isinstance(error, tuple) else error
    if isinstance(error, BaseException):
        event["exception"] = list(_told(error))
    return event


def _told(error: BaseException) -> Iterator[str]:
    yield f"{type(error).__name__}: {error}"
    for frame, line in deque(traceback.walk_tb(error.__traceback__), maxlen=_FRAMES):
        yield f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _told(inner)
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield "after"
        yield from _told(before)
