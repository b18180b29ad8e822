"""What an item is, how items are counted and chosen, and how two versions differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_scheduler.domain.datasets import (
    MOST_LINE,
    Change,
    HeadItem,
    Item,
    ItemProblem,
    Print,
    Tally,
    attributes_text,
    captured_from,
    differences,
    item_line,
    parse_item,
    parse_item_filter,
)
from hatoba_scheduler.domain.filters import FilterError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLAIN = st.text(st.characters(codec="utf-8"), max_size=40)


@given(PLAIN.filter(bool), PLAIN, st.dictionaries(PLAIN, VALUES, max_size=4), PLAIN)
def test_a_line_is_read_as_it_was_written(
    id: str, path: str, attributes: dict[str, Any], media_type: str
) -> None:
    item = Item(id, path, attributes, media_type)
    line = item_line(item)
    assert line.count(b"\n") == 1
    assert parse_item(line) == item


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "one JSON object"),
        (b"[1]", "one JSON object"),
        (b"{", "one JSON object"),
        (b"\xff{}", "one JSON object"),
        (b'{"id": ""}', "id"),
        (b'{"path": "a"}', "id"),
        (b'{"id": 3}', "must be text"),
        (b'{"id": "' + b"x" * 1025 + b'"}', "1024"),
        (b'{"id": "a", "path": 3}', "must be text"),
        (b'{"id": "a", "labels": {}}', "labels"),
        (b'{"id": "a", "data": "eA=="}', "data"),
        (b'{"id": "a", "attributes": [1]}', "must be an object"),
        (b'{"id": "a", "attributes": {"n": NaN}}', "finite"),
        (b'{"id": "a", "attributes": {"n": 1e999}}', "finite"),
        (b'{"id": "a", "attributes": {"n": 1' + b"0" * 400 + b"}}", "finite"),
        (b'{"id": "a", "attributes": {"n": ' + b"[" * 30 + b"]" * 30 + b"}}", "nested"),
        (b'{"id": "\\ud800"}', "surrogate"),
        (b'{"id": "a", "attributes": {"x": "\\udfff"}}', "surrogate"),
        (b'{"id": "' + b"x" * MOST_LINE + b'"}', "bytes"),
        (b"[" * 5000, "one JSON object"),
    ],
)
def test_a_line_that_is_no_item_is_refused_in_words(line: bytes, words: str) -> None:
    with pytest.raises(ItemProblem, match=words):
        parse_item(line)


def test_labels_and_splits_are_counted_as_texts() -> None:
    tally = Tally()
    for attributes in (
        {"label": 3, "split": "train"},
        {"label": 3.0, "split": "train"},
        {"label": "3", "split": "test"},
        {"label": ["a", "b"]},
        {"label": {"box": 1}, "split": None},
        {"label": True},
    ):
        tally.add(Item("x", attributes=attributes))
    assert tally.items == 6
    assert dict(tally.labels) == {"3": 3, "a": 1, "b": 1, "true": 1}
    assert dict(tally.splits) == {"train": 2, "test": 1}


def test_only_the_most_frequent_labels_are_kept() -> None:
    tally = Tally()
    for number in range(300):
        for _ in range(1 + number % 2):
            tally.add(Item("x", attributes={"label": number}))
    assert len(tally.labels) == 100
    assert {count for _, count in tally.labels} == {2}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", "abc"),
        ("split = test", "ab"),
        ("split != test", "c"),
        ("split = test AND label = 3", "a"),
        ("label != 3", "bc"),
        ('id = "b"', "b"),
        ("path = b.png", "b"),
        ("media_type = image/png", "b"),
        ("attributes.label = cat", "c"),
        ("tags = x", "c"),
        ("nothing = 1", ""),
        ("nothing != 1", "abc"),
    ],
)
def test_a_filter_chooses(text: str, chosen: str) -> None:
    items = [
        Item("a", attributes={"split": "test", "label": 3}),
        Item("b", "b.png", {"split": "test"}, "image/png"),
        Item("c", attributes={"label": "cat", "tags": ["x", "y"]}),
    ]
    terms = parse_item_filter(text)
    assert "".join(i.id for i in items if all(t.holds(i) for t in terms)) == chosen


@pytest.mark.parametrize("text", ["split", "split = ", "= 3", "a = 1 b = 2", "a > 3"])
def test_a_filter_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        parse_item_filter(text)


PRINTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2),
    st.builds(Print, st.sampled_from([b"1", b"2"]), st.sampled_from([b"", b"x"])),
)


@given(PRINTS, PRINTS)
def test_differences_lead_from_one_version_to_the_other(
    before: dict[str, Print], after: dict[str, Print]
) -> None:
    found = differences(before, after)
    made = dict(before)
    for id, change in found.changes:
        if change is Change.REMOVED:
            del made[id]
        else:
            assert (change is Change.ADDED) == (id not in before)
            made[id] = after[id]
    assert made == after
    assert [id for id, _ in found.changes] == sorted({id for id, _ in found.changes})
    assert found.added + found.changed + found.same == len(after)
    assert found.removed + found.changed + found.same == len(before)


def test_attributes_are_compared_by_value() -> None:
    assert attributes_text({"a": 1, "b": [True]}) == attributes_text({"b": [True], "a": 1})
    assert json.loads(attributes_text({"ä": "\n"})) == {"ä": "\n"}


def test_what_captured_items_name_is_a_deployment_or_nothing() -> None:
    names = ["reader", "", "A B", "jobs/x-1", "../reader", "x" * 5_000, 7, None]
    head = [
        HeadItem(str(number), "", attributes_text({"prediction": 1, "deployment": name}), "")
        for number, name in enumerate(names)
    ]
    head.append(HeadItem("own", "", attributes_text({"deployment": "other"}), ""))
    assert captured_from(head, "lab") == ("projects/lab/deployments/reader",)
