"""What backends show elsewhere as their own: files of the data directory, or variables."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hatoba_scheduler.auth.files import InsecureFile, read_secret

DIRECTORY = "credentials"
"""Not `secrets`: those of this machine's host, which any job there may name."""
PREFIX = "HATOBA_CREDENTIALS_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ServerSecrets:
    """Looks them up each time; the values are kept nowhere."""

    def __init__(self, data: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._directory = data / DIRECTORY
        self._environ = environ

    async def value(self, name: str) -> str:
        """One of them. KeyError says that there is none, or why it is not taken, and what to do."""
        if not _NAME.fullmatch(name):
            raise KeyError(f"{name!r} is no name of credentials")
        path, variable = self._directory / name, PREFIX + _variable(name)
        try:
            return (await asyncio.to_thread(read_secret, path)).decode().removesuffix("\n")
        except FileNotFoundError:
            pass
        except (InsecureFile, OSError) as error:
            raise KeyError(str(error)) from error
        except UnicodeDecodeError:
            # Not chained: it would show a piece of the secret.
            raise KeyError(f"{path} is no text") from None
        if variable not in self._environ:
            raise KeyError(
                f"the server has no credentials {name!r}: put them into {path} (mode 0600),"
                f" or give it {variable}"
            )
        return self._environ[variable]


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for others: without these."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def _variable(name: str) -> str:
    return re.sub(r"[.-]", "_", name).upper()
