"""What differs in a container from what a host stages: its environment and its secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hatoba.v1 import job_pb2
from hatoba_worker.entrypoint.settings import without_ours
from hatoba_worker.failures import secret_missing
from hatoba_worker.host_secrets import Secrets, variable


class PlatformSecrets(Secrets):
    """Secrets that the platform has put into the container's environment."""

    def __init__(self, data: Path, environ: Mapping[str, str]) -> None:
        super().__init__(data, environ)
        self._there = environ

    def resolve(self, refs: list[job_pb2.SecretRef]) -> dict[str, str]:
        """Values by environment variable; raises AttemptFailed (SECRET_MISSING)."""
        return {name: self._given(ref.name, name) for ref in refs for name in [_variable_of(ref)]}

    def _given(self, secret: str, name: str) -> str:
        value = self._there.get(name)
        if value is None:
            raise secret_missing(f"the platform gave this container no {name} for secret {secret}")
        return value


class ElsewhereSecrets(Secrets):
    """Secrets of another container: nobody needs their values here."""

    def resolve(self, refs: list[job_pb2.SecretRef]) -> dict[str, str]:
        """Nothing."""
        return {}


def container_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a command in this container begins with: all that is there but our own settings."""
    return without_ours(environ) | {"PYTHONUNBUFFERED": "1"}


def _variable_of(ref: job_pb2.SecretRef) -> str:
    return ref.env or variable(ref.name)
