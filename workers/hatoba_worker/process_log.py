"""The log of a long-lived process: lines of JSON on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TextIO, cast

import structlog


class _Log:
    """stderr for a logger: a disk that is full loses lines and does not end the worker."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), text.encode(errors="replace"))

    def flush(self) -> None:
        """Nothing is kept back."""


def configure_log(least: int = logging.NOTSET) -> None:
    """Have structlog write JSON lines to stderr, of this level at least."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(least),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Log())),
    )
