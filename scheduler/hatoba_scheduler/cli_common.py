"""What the commands of `hatoba server` share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

DEFAULT_DATA = "~/.local/share/hatoba"
EXIT_USAGE = 2
EXIT_DAMAGED = 65
EXIT_IN_USE = 75


def data_option(function: Any) -> Any:
    """`--data DIR`, else HATOBA_DATA, else the default directory."""
    return click.option(
        "--data",
        envvar="HATOBA_DATA",
        default=DEFAULT_DATA,
        show_default=True,
        metavar="DIR",
        help="The server's data directory.",
    )(function)


def directory_of(text: str) -> Path:
    """The directory that somebody named."""
    return Path(text).expanduser().absolute()


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and end."""
    click.echo(f"hatoba server: {message}", err=True)
    sys.exit(code)


def running(directory: Path) -> dict[str, Any] | None:
    """The ready file of a server that lives, else None."""
    try:
        found: dict[str, Any] = json.loads((directory / "server.json").read_text())
        command = Path(f"/proc/{found['pid']}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    return found if b"server" in command and b"start" in command else None
