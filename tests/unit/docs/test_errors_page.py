"""The page of error codes is made from the code, and is up to date."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import errors as tool
import pytest

from hatoba_scheduler.errors import InvalidArgument, Reason, Unauthenticated

SCRIPT = Path(tool.__file__)
HELPER = """
def _refused(reason, what):
    return Unauthenticated(what, reason=reason)

def other():
    raise _refused(Reason.TOKEN_EXPIRED if late else Reason.TOKEN_REVOKED, "over")

def direct():
    raise InvalidArgument.field("name", "is bad", reason=Reason.INVALID_FILTER)
    print(Reason.BUG)
"""


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_page_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "TARGET", tmp_path / "errors.md")
    monkeypatch.setattr(sys, "argv", ["errors.py", "--check"])
    assert tool.main() == 1
    monkeypatch.setattr(sys, "argv", ["errors.py"])
    assert tool.main() == 0
    monkeypatch.setattr(sys, "argv", ["errors.py", "--check"])
    assert tool.main() == 0


def test_every_reason_has_one_row() -> None:
    page = tool.page()
    rows = page.partition("## Reasons")[2]
    assert [rows.count(f"\n| `{reason}` | ") for reason in Reason] == [1] * len(Reason)
    assert all(rows.count(f" | {reason.meaning} |") == 1 for reason in Reason)


def test_statuses_are_read_from_what_is_raised() -> None:
    assert set(tool.of_module(ast.parse(HELPER))) == {
        (Reason.TOKEN_EXPIRED, Unauthenticated),
        (Reason.TOKEN_REVOKED, Unauthenticated),
        (Reason.INVALID_FILTER, InvalidArgument),
    }


def test_a_reason_that_nothing_raises_is_a_fault() -> None:
    statuses = dict.fromkeys(Reason, frozenset({"ABORTED"}))
    del statuses[Reason.BUG]
    with pytest.raises(ValueError, match="nothing raises BUG"):
        tool.check_all(statuses)
