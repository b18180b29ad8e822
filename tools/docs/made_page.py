"""What the tools that make a page from code have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def made(target: Path, page: Callable[[], str], doc: str | None) -> int:
    """Write the page, or with --check fail when it is not up to date; the exit code of its tool."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check, text = parser.parse_args().check, page()
    if not check:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
        return 0
    if target.exists() and target.read_text() == text:
        return 0
    print(f"{target} is stale: run python tools/docs/{Path(sys.argv[0]).name}", file=sys.stderr)
    return 1


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
