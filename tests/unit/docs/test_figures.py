"""The table of devices' figures names all that there are, as they are told."""

from __future__ import annotations

import re

from docs_pages import ROOT

from hatoba_worker.agent.figures import OF_DEPLOYMENT, OF_DEVICE, Figure

_ROW = re.compile(
    r"^\| (`\w+`(?:, `\w+`)*) \| the (device|deployment): .* \| (.*) \|$", re.MULTILINE
)


def shown(one: Figure) -> str:
    """By how much it moves, as the table says."""
    return f"{one.share:.0%}".replace("%", " %") if one.share else f"{one.step:g}"


def test_the_table_of_figures_has_all_of_them() -> None:
    page = (ROOT / "docs" / "devices.md").read_text()
    rows = [
        (name.strip("`"), whose, moves)
        for names, whose, moves in _ROW.findall(page)
        for name in names.split(", ")
    ]
    known = [(one.name, "device", shown(one)) for one in OF_DEVICE]
    known += [(one.name, "deployment", shown(one)) for one in OF_DEPLOYMENT]
    assert sorted(rows) == sorted(known)
