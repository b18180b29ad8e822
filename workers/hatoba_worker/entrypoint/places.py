"""Where the runner keeps what it needs. Imports little: the parent of the runner asks here too."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

SHARED = Path("/hatoba")
PRIVATE = Path("/hatoba-runner")
INDEXES = ("HATOBA_MEMBER", "JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX")
"""Variables that tell which one of many this is, the first that is there."""

Environ = Mapping[str, str]


def directory_of(environ: Environ) -> Path:
    """Where the runner of an image keeps what it needs; the same each time. Blocks."""
    told = environ.get("HATOBA_RUNNER_DIR", "")
    if told:
        return Path(told)
    if os.access(SHARED, os.W_OK | os.X_OK):
        return SHARED
    return Path(tempfile.gettempdir(), "hatoba-runner", _name(environ))


def volumes_of(environ: Environ) -> tuple[Path, Path]:
    """The two volumes of a pod: all containers' and our own. Elsewhere than at their fixed places
    only for who says so, as tests do.
    """
    shared = Path(environ.get("HATOBA_SHARED_DIR") or SHARED)
    return shared, Path(environ.get("HATOBA_RUNNER_DIR") or PRIVATE)


def index_of(environ: Environ) -> tuple[str, str]:
    """Which one of many this is, and the variable that says so; both empty when none does."""
    name = next((name for name in INDEXES if environ.get(name)), "")
    return name, environ.get(name, "")


def _name(environ: Environ) -> str:
    told = environ.get("HATOBA_ATTEMPT") or f"member-{index_of(environ)[1]}"
    return "".join(sign if sign.isalnum() or sign == "-" else "_" for sign in told)[:100]
