"""The entry point: runs the command, says what went wrong in words, and gives the exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from hatoba.cli.exits import Exit, of_error
from hatoba.cli.root import root
from hatoba.errors import HatobaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hatoba` with these arguments (the process's own when None); returns the exit code."""
    try:
        code = root.main(args=arguments, prog_name="hatoba", standalone_mode=False, color=_colour())
        return int(code) if isinstance(code, int) else Exit.OK
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except HatobaError as error:
        show_error(error)
        return of_error(error)
    except (KeyboardInterrupt, click.Abort):
        return Exit.DETACHED
    except BrokenPipeError:
        _leave_pipe()
        return Exit.OK
    except Exception as error:  # noqa: BLE001 - people get a sentence, never a traceback
        return _bug(error)


def show_error(error: HatobaError) -> None:
    """What is wrong, with its value; every wrong field; what to do."""
    if os.environ.get("HATOBA_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    said = {f"{violation.field}: {violation.description}" for violation in error.violations}
    click.secho("error: ", fg="red", nl=False, err=True, color=_colour())
    click.echo(error.message, err=True)
    if len(said) > 1:
        for line in sorted(said):
            click.echo(f"  {line}", err=True)
    if error.remedy:
        click.echo(f"  -> {error.remedy}", err=True)


def _colour() -> bool | None:
    """False where people want none anywhere; else click looks for a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _bug(error: Exception) -> int:
    if os.environ.get("HATOBA_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    click.secho("error: ", fg="red", nl=False, err=True, color=_colour())
    click.echo(f"this is a fault of hatoba: {type(error).__name__}: {error}", err=True)
    click.echo("  -> repeat it with HATOBA_DEBUG=1 and report what it prints", err=True)
    return Exit.FAILURE


def _leave_pipe() -> None:
    """The reader of our output is gone: Python would complain about it once more at its exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
