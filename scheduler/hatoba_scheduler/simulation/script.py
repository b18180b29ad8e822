"""What the scripted cluster's tasks do: how long they run, how they end, what they save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hatoba_scheduler.domain.causes import Ending, ExitKind

GOOD = Ending(ExitKind.EXITED, 0)


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt's course. Times in seconds."""

    seconds: float = 60.0
    """Work to do when it begins from the start; what a checkpoint has saved is left out."""
    ending: Ending = GOOD
    checkpoint_every: float = 0.0
    """0: it saves nothing."""
    stops_in: float = 1.0
    """How long it takes to end when asked to; more than the grace: it is killed at its end."""
    never: bool = False
    """It goes on until it is stopped."""


Script = Callable[[int, int], Run]
"""(index, attempt number) -> what that attempt does."""


def always(run: Run) -> Script:
    """Every attempt does the same."""
    return lambda index, number: run


def in_turn(*runs: Run) -> Script:
    """The first attempt of each task does the first, the next the next; then always the last."""
    return lambda index, number: runs[min(number, len(runs)) - 1]
