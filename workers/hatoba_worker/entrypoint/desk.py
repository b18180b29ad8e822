"""Hears the server's answers for the one attempt that there is."""

from __future__ import annotations

import asyncio

import structlog

from hatoba.v1 import runner_pb2
from hatoba_worker.absence import Absence
from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.course import Course
from hatoba_worker.reports import Reporter

log = structlog.get_logger(__name__)


class Desk:
    """Passes on what is wanted. `over` is set when the attempt was taken from us while it ran,
    `accepted` tells whether our commit counted, once there was one.
    """

    def __init__(self, attempt: Attempt, book: Book, absence: Absence) -> None:
        self._attempt = attempt
        self._book = book
        self._absence = absence
        self._course: Course | None = None
        self._reporter: Reporter | None = None
        self.over = asyncio.Event()
        self.accepted: bool | None = None

    def seat(self, course: Course, reporter: Reporter) -> None:
        """Know who acts on what is heard; before anything is sent."""
        self._course = course
        self._reporter = reporter

    def heard(self) -> None:
        """The server said something just now."""
        self._absence.heard()

    def ordered(self, order: runner_pb2.HeartbeatResponse) -> None:
        """What is wanted of the attempt."""
        self.heard()
        assert self._course is not None
        grace = order.grace.ToTimedelta().total_seconds()
        if order.order == runner_pb2.RUNNER_ORDER_STOP:
            if self._attempt.why == "platform":
                # The platform did what the server wants: that is the reason.
                self._attempt.why = None
            self._course.stop(self._attempt, "stop", grace)
        elif order.order == runner_pb2.RUNNER_ORDER_CHECKPOINT:
            self._course.ask_to_save(self._attempt, grace)
        self._save()

    def metrics_stored(self, number: int) -> None:
        """Reports up to this number are stored."""
        assert self._reporter is not None
        self._reporter.stored(self._attempt, number)
        self._save()

    def checkpoint_stored(self, step: int) -> None:
        """A checkpoint was recorded, or never will be."""
        assert self._reporter is not None
        self._reporter.checkpoint_stored(self._attempt, step)
        self._save()

    def committed(self, accepted: bool) -> None:
        """The end is decided; `accepted`: by this commit."""
        self.accepted = accepted
        self._attempt.unanswered.pop("commit", None)
        self._attempt.committed.set()

    def superseded(self, reason: str) -> None:
        """The attempt is not ours any more: it ends, unless it has."""
        log.warning("attempt.superseded", attempt=self._attempt.name, reason=reason)
        if not self._attempt.ended.is_set():
            self._book.dropped(self._attempt)
            self.over.set()

    def _save(self) -> None:
        try:
            self._book.save()
        except OSError as error:
            log.error("journal.full", error=str(error))
