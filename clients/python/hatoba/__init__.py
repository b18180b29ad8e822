"""The Python SDK. Importing it needs the standard library only; the rest is imported when first
named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatoba.job_context import JobContext, current_job

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient, AsyncJob
    from hatoba.client import Client, Job, submit
    from hatoba.errors import HatobaError

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "HatobaError",
    "Job",
    "JobContext",
    "current_job",
    "submit",
]

_LAZY = {
    "AsyncClient": "hatoba.aio",
    "AsyncJob": "hatoba.aio",
    "Client": "hatoba.client",
    "HatobaError": "hatoba.errors",
    "Job": "hatoba.client",
    "submit": "hatoba.client",
}


def __getattr__(name: str) -> object:
    """Import what needs more than the standard library when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hatoba' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """Everything that `hatoba.` offers, imported or not."""
    return sorted({*globals(), *__all__})
