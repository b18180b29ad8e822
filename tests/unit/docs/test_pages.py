"""What the pages say about this checkout is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from docs_pages import ROOT, anchors, blocks, links, pages

from hatoba import __version__

README_LINES = 150
PAGES = [str(path.relative_to(ROOT)) for path in pages()]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.compile(r"`([^`\n]+)`")
METRIC = re.compile(r"\"(hatoba_[a-z_]+)\"")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?")


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    dead = []
    for link in links(here.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (here.parent / path).resolve() if path else here
        known = anchors(target.read_text()) if anchor and target.is_file() else {anchor}
        if not target.exists() or (anchor and anchor not in known):
            dead.append(link)
    assert dead == []


def test_every_figure_of_the_metrics_page_is_told_of() -> None:
    sources = (ROOT / "scheduler" / "hatoba_scheduler").rglob("*.py")
    texts = [text for path in sources if "prometheus" in (text := path.read_text()).lower()]
    named = {name for text in texts for name in METRIC.findall(text)}
    told = (ROOT / "docs" / "operate.md").read_text()
    assert {"hatoba_loop_lag_seconds", "hatoba_devices_behind"} <= named
    assert {name for name in named if f"`{name}" not in told} == set()


@pytest.mark.parametrize("page", PAGES)
def test_fenced_blocks_are_closed_and_their_notes_understood(page: str) -> None:
    text = (ROOT / page).read_text()
    assert len(list(blocks(text))) == len(re.findall(r"^```", text, re.MULTILINE)) / 2
    assert text.count("docs-test:") == sum(
        bool(block.skip or block.code or block.file) for block in blocks(text)
    )


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), {ROOT / "README.md"}
    while todo:
        page = todo.pop()
        reached.add(page)
        found = (
            (page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text())
        )
        todo |= {path for path in found if path.suffix == ".md" and path.is_file()} - reached
    assert set(pages()) - reached == set()


def test_the_readme_is_short_and_has_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert any(block.kind == "mermaid" for block in blocks(text))


# -- CONTRIBUTING -------------------------------------------------------------------------------


def test_every_file_and_folder_that_is_named_is_there() -> None:
    made = {".venv", "build/bench.json"}
    named = {name.rstrip("/") for name in CODE.findall(CONTRIBUTING) if FILE.fullmatch(name)}
    named |= set(re.findall(r"^\| `([^`]+)` \|", rooms(), re.MULTILINE))
    assert len(named) > 30
    tops = {path.name for path in ROOT.iterdir()}
    missing = {name for name in named - made if not (ROOT / name).exists()}
    # Some names are short for a folder of the same row, such as `keeper/`.
    assert {name for name in missing if name.split("/")[0] in tops} == set()


def test_every_folder_of_the_checkout_has_its_row() -> None:
    command = ["git", "ls-files"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {path.split("/")[0] for path in files.splitlines() if "/" in path}
    rows = {name.split("/")[0] for name in re.findall(r"^\| `([^`]+)`", rooms(), re.MULTILINE)}
    assert {top for top in tops if not top.startswith(".")} - rows == set()


def rooms() -> str:
    """The table of folders."""
    return CONTRIBUTING.partition("## The rooms")[2].partition("\n## ")[0]


def test_every_target_that_is_named_exists_and_every_one_is_named() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    told = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    texts = [(ROOT / page).read_text() for page in PAGES]
    named = {name for text in texts for name in re.findall(r"\bmake ([a-z-]+)`", text)}
    named |= set(re.findall(r"`make ([a-z]+)", CONTRIBUTING))
    assert named <= targets
    assert told <= named


# -- CHANGELOG ----------------------------------------------------------------------------------


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[?([^\]\s]+)", text, re.MULTILINE)
    assert {"Unreleased", __version__} & set(headings)
    assert __version__ in text


# -- the tests' own reading ---------------------------------------------------------------------

PAGE = """# A page: with *words*

[here](#a-page-with-words) [there](other.md)

<!-- docs-test: exit 20 -->
```sh
false [no](link)
```
"""


def test_how_a_page_is_read() -> None:
    (block,) = blocks(PAGE)
    assert (block.kind, block.text, block.code) == ("sh", "false [no](link)\n", 20)
    assert links(PAGE) == ["#a-page-with-words", "other.md"]
    assert anchors(PAGE) == {"a-page-with-words"}


def test_a_note_that_nobody_understands_is_refused() -> None:
    with pytest.raises(ValueError, match="'skip: no'"):
        list(blocks(PAGE.replace("exit 20", "skip: no")))


def test_links_of_every_page_are_found() -> None:
    assert Path("README.md").name in PAGES
    assert sum(len(links((ROOT / page).read_text())) for page in PAGES) > 30
