"""What the store's doctor finds in a stopped store's file."""

from __future__ import annotations

from pathlib import Path

from hatoba_scheduler.store.sqlite.doctor import visit


def problems_of(path: Path) -> list[str]:
    """Everything that is not as it must be, in words."""
    return [problem.text() for problem in visit(path, 0, mend=False)]
