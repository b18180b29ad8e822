"""Figures as notebooks want them."""

from __future__ import annotations

import math
import sys

import pytest

from hatoba.frames import Metrics, MissingExtra, table

METRICS = Metrics({"loss": [(0, 1.0), (1, 0.5)], "accuracy": [(1, 0.9)]})


def test_a_key_is_a_column_and_a_step_a_row() -> None:
    frame = METRICS.to_pandas()
    assert list(frame.columns) == ["loss", "accuracy"]
    assert list(frame.index) == [0, 1]
    assert frame.index.name == "step"
    assert frame.loc[1, "loss"] == 0.5
    assert math.isnan(frame.loc[0, "accuracy"])


def test_without_pandas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra) as refused:
        METRICS.to_pandas()
    assert refused.value.remedy == "pip install pandas"


def test_a_notebook_shows_a_table_and_no_markup_of_others() -> None:
    shown = Metrics({"<b>loss</b>": [(3, 0.25)]})._repr_html_()
    assert "<td>&lt;b&gt;loss&lt;/b&gt;</td><td>0.25</td><td>1</td>" in shown
    assert table(("a",), []) == "<table><tr><th>a</th></tr></table>"
