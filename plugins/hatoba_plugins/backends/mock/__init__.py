"""A backend on which everything that can go wrong goes wrong on demand. For tests, users' too.

Jobs say what becomes of them by a script (`backend_options.mock`, see `Script`); a test that opens
the backend itself holds its `MockWorld` and injects faults while things run. Replicas have scripts
too (see `ReplicaScript`). What was launched, claimed, started, ended, stopped, released, applied
and made stands in an fsynced ledger, for counting afterwards.
"""

from __future__ import annotations

from hatoba_plugins.backend import BackendType
from hatoba_plugins.backends.mock.backend import MockOptions, MockType
from hatoba_plugins.backends.mock.faults import Fault, Faults
from hatoba_plugins.backends.mock.ledger import Entry, read_ledger
from hatoba_plugins.backends.mock.replicas import ReplicaScript
from hatoba_plugins.backends.mock.script import FaultKind, Script
from hatoba_plugins.backends.mock.world import FirstClaimWins, MockRunner, MockWorld
from hatoba_plugins.spec import hookimpl

__all__ = [
    "Entry",
    "Fault",
    "FaultKind",
    "Faults",
    "FirstClaimWins",
    "MockOptions",
    "MockRunner",
    "MockType",
    "MockWorld",
    "ReplicaScript",
    "Script",
    "plugin",
    "read_ledger",
]


class _Plugin:
    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The type `mock`."""
        return [MockType()]


plugin = _Plugin()
