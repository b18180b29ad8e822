"""What a check of the store finds, and what would mend it."""

from __future__ import annotations

from typing import NamedTuple

from hatoba_scheduler.domain.records import Counts


class Recount(NamedTuple):
    """Write what a recount of a job's tasks gave; only over this version of the job."""

    job_uid: str
    version: int
    counts: Counts


class LetGo(NamedTuple):
    """An ended attempt gives back what it holds, once its backend confirms it."""

    job_uid: str
    task: int
    number: int


class Execute(NamedTuple):
    """Statements of the schema, or deletions of what belongs to nothing."""

    sql: str


Mend = Recount | LetGo | Execute


class StoreProblem(NamedTuple):
    """One thing that is not as it must be.

    `invariant` is its number or one of `file`, `schema`, `row`, `reference`; `repair` says what
    `mend` does, and is empty where a repair would be a guess.
    """

    invariant: str
    message: str
    repair: str = ""
    mend: Mend | None = None
    repaired: bool = False

    def text(self) -> str:
        """One line for people."""
        done = "repaired: " if self.repaired else "repair: "
        tail = f" [{done}{self.repair}]" if self.repair else " [no repair without a guess]"
        return f"{self.invariant}: {self.message}{tail}"
