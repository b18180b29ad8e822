"""The page of states is made from the table, and is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import device_stages
import pytest
import states as tool

from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.transitions import TRANSITIONS

SCRIPT = Path(tool.__file__)


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_page_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "page", lambda: "new")
    monkeypatch.setattr(tool, "TARGET", tmp_path / "states.md")
    monkeypatch.setattr(sys, "argv", ["states.py", "--check"])
    assert tool.main() == 1
    monkeypatch.setattr(sys, "argv", ["states.py"])
    assert tool.main() == 0
    monkeypatch.setattr(sys, "argv", ["states.py", "--check"])
    assert tool.main() == 0


def test_every_arrow_of_the_table_is_drawn_with_a_reason_and_no_other() -> None:
    found = tool.Walk()
    found.all_ways()
    drawn = {arrow for arrow in found.tasks if arrow[0] != "[*]"}
    assert drawn == {(a.name, b.name) for a, following in TRANSITIONS.items() for b in following}
    assert all(found.tasks.values())


def test_an_arrow_that_nothing_goes_along_is_a_fault() -> None:
    with pytest.raises(ValueError, match="nothing leads from QUEUED to"):
        tool.check_table({("HELD", "QUEUED"): {"release"}})


def test_every_stage_of_a_device_is_come_to_and_two_are_for_good() -> None:
    found = device_stages.arrows()
    assert {after for _, after in found} == {stage.name for stage in Stage}
    over = {stage.name for stage in Stage if stage.over}
    assert over - {before for before, _ in found} == {"SUCCEEDED", "SUPERSEDED"}
    assert all(found.values())
