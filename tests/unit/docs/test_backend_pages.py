"""The pages of backends say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import backend_options as tool
import pytest
from docs_pages import ROOT, links

from hatoba_plugins.backends.iot_edge.backend import OF_JOBS
from hatoba_plugins.values import BackendOptions, Exit, ExitKind
from hatoba_scheduler.control.observe import ending_of
from hatoba_scheduler.domain.causes import judge
from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.states import CauseCode

PAGES = ROOT / "docs" / "backends"
CORPUS = ROOT / "tests" / "corpus"
SOURCES = ROOT / "workers" / "hatoba_worker"
DEVICES = "iot-edge-arm"
"""No payloads are recorded of it: what devices tell is our own agent's work."""
RECORDED = {
    "hosts": "docker",
    "k8s-gpu": "k8s_gpu",
    "ecs": "ecs",
    "batch-spot": "batch_spot",
}
SECTIONS = {"What it needs", "Limits", "What was tested on what"}


def text_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def test_the_tables_of_options_are_up_to_date() -> None:
    command = [sys.executable, str(Path(tool.__file__)), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@dataclass(frozen=True, slots=True)
class Told(BackendOptions):
    """Options, one of them with two lines."""

    size: int = 3
    """How large,
    and how | wide."""
    on: bool = True
    """Whether."""


@dataclass(frozen=True, slots=True)
class Untold(BackendOptions):
    """Options, one of them without a word."""

    size: int = 3
    on: bool = True
    """Whether."""


def test_a_row_is_what_the_code_says() -> None:
    assert tool.options_table(Told).splitlines()[2:] == [
        "| `size` | `3` | How large, and how \\| wide. |",
        "| `on` | `true` | Whether. |",
    ]


def test_a_type_without_options_has_a_sentence() -> None:
    assert tool.options_table(BackendOptions) == tool.NONE


def test_an_option_that_nobody_documented_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"nothing says what Untold\.size means"):
        tool.options_table(Untold)


def test_the_index_leads_to_every_page() -> None:
    found = set(links((PAGES / "README.md").read_text()))
    assert {path.name for path in PAGES.glob("*.md")} - {"README.md"} <= found
    assert set(tool.TYPES) == {*RECORDED, DEVICES}


def test_the_index_says_whether_devices_run_jobs() -> None:
    (row,) = [line for line in text_of("README").splitlines() if f"({DEVICES}.md)" in line]
    assert row.split("|")[2].strip().startswith("yes") is (OF_JOBS.runner != "none")


@pytest.mark.parametrize("name", tool.TYPES)
def test_every_page_says_what_it_has_to(name: str) -> None:
    headings = set(re.findall(r"^## (.+)$", text_of(name), re.MULTILINE))
    assert set() == SECTIONS - headings
    assert any(heading.startswith(("Cost", "What it costs")) for heading in headings)


FAULTS = {
    "missing": "IMAGE_MISSING",
    "denied": "IMAGE_DENIED",
    "wrong_arch": "IMAGE_ARCHITECTURE",
    "transient": "IMAGE_UNREACHABLE",
}
"""What the engine's faults become."""


def kinds(node: object) -> Iterator[str]:
    """Names of how something ended, wherever an expectation has them."""
    if isinstance(node, str):
        yield FAULTS.get(node, node)
    elif isinstance(node, dict):
        for below in node.values():
            yield from kinds(below)


def causes(names: set[str]) -> set[str]:
    """What the core makes of these ends."""
    told = (judge(ending_of(Exit(ExitKind[name], 3, 9)))[1] for name in names)
    return {cause.code.name for cause in told if cause is not None}


def words(name: str) -> set[str]:
    """What stands in capitals on a page."""
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", text_of(name)))


@pytest.mark.parametrize(("name", "folder"), RECORDED.items())
def test_causes_on_the_page_are_those_that_payloads_are_told_as(name: str, folder: str) -> None:
    recorded = [json.loads(path.read_text()) for path in (CORPUS / folder).glob("*.json")]
    told = {kind for one in recorded for kind in kinds(one["expect"])}
    known = causes(told & set(ExitKind.__members__))
    written = words(name)
    assert known
    assert known - written == set()
    # The page of hosts has causes of processes too, of which no engine tells.
    if name != "hosts":
        assert (causes(set(ExitKind.__members__)) & written) - known == set()


def told_by_agents() -> set[str]:
    """Causes that the sources of agent and replicas name, and the one that is the server's own."""
    paths = (*(SOURCES / "agent").glob("*.py"), SOURCES / "replicas" / "causes.py")
    texts = [path.read_text() for path in paths]
    names = {
        name for text in texts for name in re.findall(r"(?:\bCAUSE_CODE_|\")([A-Z_]+)\b", text)
    }
    return names & set(CauseCode.__members__) | {"DEADLINE"}


def test_causes_and_stages_of_devices_are_those_that_there_are() -> None:
    known, written = told_by_agents(), words(DEVICES)
    assert len(known) > 10
    assert written & set(CauseCode.__members__) == known
    stages = {stage.name for stage in Stage if Stage.APPLYING <= stage <= Stage.NOT_REACHED}
    assert stages - written == set()
