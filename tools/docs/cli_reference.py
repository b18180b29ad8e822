"""Write docs/cli.md from the commands themselves: `cli_reference.py [--check]`.

Only what this distribution brings is described; commands of other distributions are not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import click
from made_page import DOCS, made, table

from hatoba.cli.exits import Exit
from hatoba.cli.root import COMMANDS, ENTRY_POINTS, EXTRAS, root

TARGET = DOCS / "cli.md"
HEAD = """# The command line

Written by `python tools/docs/cli_reference.py` from the commands' own help.

`hatoba VERB` for what is done all day (`run`, `logs`, `status`), `hatoba NOUN VERB` for the rest.
Only data goes to stdout; what is said to people goes to stderr. `-o json` and `-o yaml` write proto
JSON with the names of the contract and enum values without prefix. Nothing is coloured when it is
piped, or when `NO_COLOR` is set. `HATOBA_DEBUG=1` adds the traceback to an error.

## Which server

The first of these that says something: `--address` (before or after the command), `HATOBA_ADDRESS`
with `HATOBA_TOKEN_FILE`, the context in use (`hatoba login`, `hatoba context use`), the embedded
server in `HATOBA_DATA` (default `~/.local/share/hatoba`), which is started when it does not run.
"""


def main() -> int:
    """Write the page, or with --check fail when it is not up to date."""
    return made(TARGET, page, __doc__)


def page() -> str:
    """The whole page."""
    names = ["-h", "--help"]
    context = click.Context(root, info_name="hatoba", terminal_width=96, help_option_names=names)
    parts = [HEAD, exit_codes(), f"## Commands\n\n```\n{root.get_help(context)}\n```\n"]
    for name in (*COMMANDS, *sorted(EXTRAS)):
        parts.extend(sections(name, command(name), context, depth=3))
    return "\n".join(parts)


def exit_codes() -> str:
    """The table of exit codes, from the documentation of each."""
    module = Path(sys.modules[Exit.__module__].__file__ or "").read_text().splitlines()
    rows = []
    for code in Exit:
        line = next(n for n, text in enumerate(module) if text.startswith(f"    {code.name} = "))
        rows.append((str(code.value), module[line + 1].strip().strip(chr(34))))
    return f"## Exit codes\n\n{table(('code', 'meaning'), rows)}\n"


def command(name: str) -> click.Command:
    """A command of ours, imported."""
    if name in COMMANDS:
        module, _, attribute = COMMANDS[name][0].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        found = next(iter(entry_points(group=ENTRY_POINTS, name=name))).load()
    assert isinstance(found, click.Command)
    return found


def sections(
    name: str, found: click.Command, parent: click.Context, *, depth: int
) -> Iterator[str]:
    """The command's section and, below it, those of its own commands."""
    context = click.Context(found, info_name=name, parent=parent, terminal_width=96)
    heading = "#" * min(depth, 6)
    yield f"{heading} {context.command_path}\n\n```\n{found.get_help(context)}\n```\n"
    if isinstance(found, click.Group):
        for child in found.list_commands(context):
            below = found.get_command(context, child)
            if below is not None and not below.hidden:
                yield from sections(child, below, context, depth=depth + 1)


if __name__ == "__main__":
    sys.exit(main())
