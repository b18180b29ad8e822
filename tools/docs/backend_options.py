"""Write the tables of options in docs/backends from the options themselves: `[--check]`.

Each stands on its type's page between two marks; a row is a field, its default, and the
documentation that follows the field in the code. A field that nobody documented is a fault.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

from made_page import DOCS, table

from hatoba_plugins.loader import load
from hatoba_plugins.values import BackendOptions

PAGES = DOCS / "backends"
TYPES = ("hosts", "k8s-gpu", "ecs", "batch-spot", "iot-edge-arm")
NONE = "It has no options of its own."
MARK = "<!-- options: made by tools/docs/backend_options.py -->"
END = "<!-- end of options -->"
_BLOCK = re.compile(f"{re.escape(MARK)}.*?{re.escape(END)}", re.DOTALL)


def main() -> int:
    """Write the tables, or with --check fail when one is not up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if path.read_text() != text]
    if not check:
        for path in stale:
            path.write_text(pages()[path])
        return 0
    for path in stale:
        print(f"{path} is stale: run python tools/docs/backend_options.py", file=sys.stderr)
    return int(bool(stale))


def pages() -> dict[Path, str]:
    """Every page with its table as it has to be. ValueError for a page without the marks."""
    types = load().types
    return {
        PAGES / f"{name}.md": page(PAGES / f"{name}.md", types[name].type.options) for name in TYPES
    }


def page(path: Path, options: type[BackendOptions]) -> str:
    """One page. Raises ValueError when it has not one pair of marks."""
    found, text = options_table(options), path.read_text()
    made, count = _BLOCK.subn(lambda _: f"{MARK}\n\n{found}\n\n{END}", text)
    if count != 1:
        raise ValueError(f"{path} has {count} places for its options, not 1")
    return made


def options_table(options: type[BackendOptions]) -> str:
    """The table of one type, or a sentence where there is nothing to put into it."""
    meant = dict(documented(options))
    if not meant:
        return NONE
    rows = ((f"`{one.name}`", default(one), meant[one.name]) for one in fields(options))
    return table(("option", "default", "meaning"), rows)


def default(option: Field[object]) -> str:
    """As it is written in TOML; nothing for what is empty."""
    given = option.default
    if given is MISSING or given == "":
        return ""
    return f"`{str(given).lower() if isinstance(given, bool) else given}`"


def documented(options: type) -> Iterator[tuple[str, str]]:
    """Of each field of a dataclass and of those it derives from: what it means."""
    for kind in reversed(options.__mro__):
        if is_dataclass(kind):
            yield from documented_here(kind)


def documented_here(kind: type) -> Iterator[tuple[str, str]]:
    """Fields that this class itself has. ValueError for one without documentation."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    for field, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield field.target.id, " ".join(text.split()).replace("|", "\\|")
            case _:
                raise ValueError(f"nothing says what {kind.__name__}.{field.target.id} means")


if __name__ == "__main__":
    sys.exit(main())
