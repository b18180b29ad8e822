"""The commands of README and docs/start.md, run in order as a newcomer types them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import ROOT, Block, blocks
from server_process import HatobaServer, clean_environment, kill9

PAGES = ["README.md", "docs/start.md", "docs/tutorial.md", "docs/devices.md"]
EXAMPLES = "examples"


class Newcomer:
    """A shell that keeps its directory and variables from one block to the next."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.env = {
            **clean_environment(),
            "HOME": str(home),
            "HATOBA_DATA": str(self.data),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.cwd = home / "work"
        shutil.copytree(ROOT / EXAMPLES / "digits", self.cwd / EXAMPLES / "digits")

    def type(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Run a block, each command of which must succeed; a background job's output goes on."""
        left_in, out = self.home / "left-in", self.home / "out"
        script = f"set -eu\n{block.text}\npwd > {left_in}"
        with out.open("w") as file:
            done = subprocess.run(
                ["bash", "-c", script],
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        if left_in.exists():
            self.cwd = Path(left_in.read_text().strip())
        return subprocess.CompletedProcess(done.args, done.returncode, out.read_text())

    def save(self, block: Block) -> None:
        """Make a file as the page says."""
        (self.cwd / block.file).write_text(block.text)

    def leave(self) -> list[str]:
        """End everything; what is left running."""
        command = ["hatoba", "server", "stop", "--all", "--grace", "0"]
        subprocess.run(command, env=self.env, check=False, capture_output=True)
        directories = (self.data, self.home / "work" / "second", *self._devices())
        there = [data for data in directories if data.exists()]
        return [line for data in there for line in HatobaServer(data).left()]

    def _devices(self) -> list[Path]:
        """Directories of devices that the page made; what still runs there is ended."""
        found = [lock.parent for lock in self.home.glob("work/*/agent.lock")]
        for data in found:
            kill9(int((data / "agent.lock").read_text()))
            command = ["hatoba", "worker", "stop", "--data", str(data), "--all", "--grace", "0"]
            subprocess.run(command, env=self.env, check=False, capture_output=True)
        return found


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """A home of one's own, in which nothing may be left running."""
    one = Newcomer(tmp_path)
    yield one
    assert one.leave() == []


def missing(expected: str, output: str) -> list[str]:
    """Lines of a page that the output does not have; `…` stands for anything.

    In any order: what a job writes and what is told of it come on two streams.
    """
    lines = [line.rstrip() for line in output.splitlines()]
    return [line for line in expected.splitlines() if not any(map(pattern(line).fullmatch, lines))]


def pattern(line: str) -> re.Pattern[str]:
    """What matches a line of a page."""
    return re.compile(".*".join(map(re.escape, line.split("…"))))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_says_happens(page: str, newcomer: Newcomer) -> None:
    output = ""
    ran = 0
    for block in blocks((ROOT / page).read_text()):
        where = f"{page}:{block.line}"
        if block.file:
            newcomer.save(block)
        elif block.kind == "sh" and not block.skip:
            done = newcomer.type(block)
            output = done.stdout
            assert done.returncode == block.code, f"{where}\n{block.text}\n{output}"
            ran += 1
        elif block.kind == "text":
            assert missing(block.text, output) == [], f"{where}\n{output}"
    assert ran >= 2


def test_a_page_that_lies_is_found() -> None:
    output = "one\ntwo  SUCCEEDED after 3ms\n"
    assert missing("one\ntwo  SUCCEEDED after …\n", output) == []
    assert missing("…SUCCEEDED…\none two\n", output) == ["one two"]
    assert missing("two  FAILED …\n", output) == ["two  FAILED …"]
