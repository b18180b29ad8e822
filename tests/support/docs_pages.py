"""Pages in Markdown: their fenced blocks, links and headings.

An HTML comment before a fence says how the block is tested: `<!-- docs-test: skip: WHY -->`,
`<!-- docs-test: exit N -->`, `<!-- docs-test: file NAME -->` (the block is that file).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"^(?:<!-- docs-test: (?P<note>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
NOTE = re.compile(r"skip: (?P<why>.{10,})|exit (?P<code>\d+)|file (?P<file>[\w.-]+)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, text, line in the page, and what its comment says."""

    kind: str
    text: str
    line: int
    skip: str = ""
    code: int = 0
    file: str = ""


def pages() -> list[Path]:
    """Every page that people read."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/*.md")]
    return sorted(found)


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page in order. Raises ValueError for a comment nobody understands."""
    for found in FENCE.finditer(page):
        line = page.count("\n", 0, found.start("kind")) + 1
        note = NOTE.fullmatch(found["note"]) if found["note"] else None
        if found["note"] and note is None:
            raise ValueError(f"line {line}: {found['note']!r} is no `docs-test`")
        told = note.groupdict() if note else {}
        yield Block(
            kind=found["kind"],
            text=found["text"],
            line=line,
            skip=told.get("why") or "",
            code=int(told.get("code") or 0),
            file=told.get("file") or "",
        )


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page)


def links(page: str) -> list[str]:
    """Where a page's links lead."""
    return LINK.findall(prose(page))


def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    made = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(prose(page)))
    return {title.replace(" ", "-") for title in made}
