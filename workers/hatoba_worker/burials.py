"""Removing what is kept of attempts that are over, many at a time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable

from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.environments import Environments
from hatoba_worker.executors import Executor
from hatoba_worker.homes import Homes
from hatoba_worker.logs import FILES
from hatoba_worker.staging import PARAMS, SAVE_FILE, STOP_FILE

_FILES = frozenset({FILES["build"], PARAMS, SAVE_FILE, STOP_FILE})


class Burials:
    """Those that come in one turn of the event loop are journalled with one write."""

    def __init__(
        self,
        book: Book,
        homes: Homes,
        executor: Executor,
        environments: Environments,
        tasks: asyncio.TaskGroup,
        save: Callable[[], None],
    ) -> None:
        self._book = book
        self._homes = homes
        self._executor = executor
        self._environments = environments
        self._tasks = tasks
        self._save = save
        self._waiting: list[tuple[Attempt, str]] = []

    def add(self, attempt: Attempt, outcome: str) -> None:
        """Forget an attempt of which nothing is left."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._bury)
        self._waiting.append((attempt, outcome))

    def _bury(self) -> None:
        waiting, self._waiting = self._waiting, []
        for attempt, outcome in waiting:
            self._book.forget(attempt.name, outcome)
        # The journal first: what the keeper has forgotten must not be taken for never started.
        self._save()
        for attempt, _ in waiting:
            self._executor.forget(attempt.name)
            self._environments.release(attempt.name)
            self._remove(attempt)

    def _remove(self, attempt: Attempt) -> None:
        if not self._homes.take_back(attempt.home, _FILES):
            removal = asyncio.to_thread(shutil.rmtree, attempt.home, True)
            self._tasks.create_task(removal, name=f"remove {attempt.name}")
