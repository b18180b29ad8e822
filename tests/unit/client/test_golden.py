"""Golden cases: what is refused when they are given, and which answers are the expected ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba import golden, handlers
from hatoba.golden import Case, GoldenRefused, Tolerance
from hatoba.handlers import Handler, Payload

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def lines(*cases: object) -> bytes:
    return b"".join(json.dumps(case).encode() + b"\n" for case in cases)


def case(expected: Any, tolerance: Tolerance | None = None) -> Case:
    return Case(3, Payload(b"1", handlers.JSON), expected, tolerance)


def wrong(expected: Any, found: Any, tolerance: Tolerance | None = None) -> str:
    """What is said of an answer; empty for the expected one."""
    try:
        golden.compare(case(expected, tolerance), handlers.encode(found))
    except GoldenRefused as error:
        return str(error).removeprefix("golden case 3 is answered wrongly: ")
    return ""


# -- reading --------------------------------------------------------------------------------------


def test_lines_are_cases_with_their_tolerances() -> None:
    data = lines(
        {"input": {"x": 1}, "expected": 0.5, "tolerance": 0.01},
        {"input": 2, "expected": [1], "tolerance": {"relative": 0.1}},
    )
    first, second = golden.parse(data + b"\n" + lines({"input": None, "expected": None}))[:2]
    assert (first.number, first.input, first.expected) == (1, (b'{"x":1}', "application/json"), 0.5)
    assert (first.tolerance, second.tolerance) == (Tolerance(0.01), Tolerance(0.0, 0.1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "there is no case: each line is one"),
        (b"\n \n", "there is no case"),
        (b'{"input": 1}\n{', "line 1: there is no 'expected'"),
        (b'{"input": 1, "expected": 1}\n\n{"a', "line 3 is not JSON: Unterminated string"),
        (b'{"input": 1, "expected": NaN}', "line 1 is not JSON: NaN is no number of JSON"),
        (b"\xff", "line 1 is not JSON: no UTF-8 at byte 0"),
        (b"[" * 100_000, "line 1 is nested too deeply"),
        (b"[1]", "line 1: an object with `input` and `expected` is needed, not [1]"),
        (lines({"expected": 1}), "line 1: there is no 'input'"),
        (lines({"input": 1, "expected": 1, "tol": 1}), "line 1: 'tol' is not known: it has input,"),
        (lines({"input": 1, "expected": 1, "tolerance": -1}), "line 1: tolerance is -1: it has to"),
        (
            lines({"input": 1, "expected": 1, "tolerance": "1"}),
            'line 1: tolerance is "1": a number',
        ),
        (lines({"input": 1, "expected": 1, "tolerance": True}), "tolerance is true: a number"),
        (lines({"input": 1, "expected": 1, "tolerance": {"rel": 1}}), "tolerance has no 'rel'"),
        (b'{"input": 1, "expected": 1, "tolerance": 1e999}', "tolerance is Infinity: it has to be"),
        (b'{"input": 1, "expected": {"a": [1, 1e999]}}', "line 1: expected: $.a[1] is no number"),
        (b'{"input": 1e999, "expected": 1}', "line 1: JSON cannot carry float"),
        (
            b'{"input": 1, "expected": ' + b"[" * 70 + b"]" * 70 + b"}",
            "line 1: expected is nested more than 64 deep",
        ),
        (b'{"input": 1, "expected": 1' + b"0" * 400 + b"}", "$ is no number that can be compared"),
        (lines({"input": 1, "expected": 1, "media_type": 3}), "media_type is 3: write it like"),
        (
            lines({"input": "no base64!", "expected": 1, "media_type": "image/png"}),
            "line 1: input of image/png has to be its bytes in base64",
        ),
        (lines(*[{"input": 1, "expected": 1}] * 65), "line 65: there may be 64 cases"),
        (b" " * (1 << 18) + b"\n", "they have 262,145 bytes and may have 262,144"),
    ],
)
def test_what_is_no_case_is_refused_with_its_line(data: bytes, said: str) -> None:
    with pytest.raises(GoldenRefused) as refused:
        golden.parse(data)
    assert said in str(refused.value)


@given(st.binary(max_size=60))
def test_whatever_is_given_is_cases_or_refused(data: bytes) -> None:
    with contextlib.suppress(GoldenRefused):
        assert golden.parse(data)


def test_bytes_go_in_as_base64() -> None:
    data = golden.content_of([{"input": b"\x89P", "media_type": "image/png", "expected": 1}])
    assert json.loads(data)["input"] == "iVA="
    assert golden.parse(data)[0].input == (b"\x89P", "image/png")
    assert golden.parse(golden.content_of([{"input": b"\0", "expected": 1}]))[0].input == (
        b"\0",
        "application/octet-stream",
    )


def test_a_file_is_kept_as_it_is_and_named_when_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(b'{ "input": 1, "expected": 2 }\n\n')
    assert golden.content_of(path) == path.read_bytes()
    path.write_bytes(b"{}")
    with pytest.raises(GoldenRefused, match=r"golden cases: .*g\.jsonl: line 1: there is no 'inpu"):
        golden.content_of(path)
    with pytest.raises(GoldenRefused, match="cannot be read: No such file"):
        golden.content_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("given_cases", "said"),
    [
        ("g.jsonl", "a path or a list of objects"),
        ({"input": 1, "expected": 1}, "a path or a list of objects"),
        (3, "a path or a list of objects"),
        ([{"input": 1, "expected": float("nan")}], "line 1: JSON cannot carry dict"),
        ([{"input": 1, "expected": 1}, 2], "line 2: an object with"),
        ([], "there is no case"),
    ],
)
def test_what_is_no_list_of_cases_is_refused(given_cases: object, said: str) -> None:
    with pytest.raises(GoldenRefused, match=said):
        golden.content_of(given_cases)


def test_beside_the_model_there_are_as_many_as_were_registered(tmp_path: Path) -> None:
    assert golden.read(tmp_path, 0) == ()
    with pytest.raises(GoldenRefused, match="cannot be read"):
        golden.read(tmp_path, 1)
    (tmp_path / "golden.jsonl").write_bytes(lines({"input": 1, "expected": 1}))
    assert len(golden.read(tmp_path, 1)) == 1
    with pytest.raises(GoldenRefused, match="has 1 golden cases, and 2 were registered"):
        golden.read(tmp_path, 2)
    (tmp_path / "golden.jsonl").write_bytes(b"{}")
    with pytest.raises(GoldenRefused, match=r"of the model's golden.jsonl: line 1: there is no"):
        golden.read(tmp_path, 1)


# -- comparing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (0.3, 0.1 + 0.2),
        (1, 1.0),
        (1.0, 1),
        ({"a": 1}, {"a": 1, "seconds": 0.2}),
        ({"a": [{"b": None}, "x", True]}, {"a": [{"b": None, "c": 1}, "x", True]}),
        ([], []),
        ("seven", "seven"),
    ],
)
def test_answers_that_are_expected(expected: Any, found: Any) -> None:
    assert wrong(expected, found) == ""


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (1, 2, "$ is 2, expected 1"),
        (1_000_000, 1_000_001, "$ is 1000001, expected 1000000"),
        (0.5, 0.51, "$ is 0.51, expected 0.5 within 1e-06 or 1e-06 of it"),
        (1, True, "$ is true, expected 1"),
        (0, False, "$ is false, expected 0"),
        (None, 0, "$ is 0, expected null"),
        ("7", 7, '$ is 7, expected "7"'),
        ("7", [7], '$ is [7], expected "7"'),
        ([1, 2], [1], "$ has 1 members, expected 2"),
        ({"a": [1]}, {"a": {"0": 1}}, '$.a is {"0": 1}, expected [1]'),
        ({"a": 1}, {"b": 1}, "$.a is not there, expected 1"),
        ({"a": {"b c": [0, 1]}}, {"a": {"b c": [0, 2]}}, '$.a["b c"][1] is 2, expected 1'),
        ({"a": 1, "b": 2}, {"a": 5, "b": 6}, "$.a is 5, expected 1"),
        ("x", "y" * 100, "$ is " + '"' + "y" * 79 + '…, expected "x"'),
        (1.5, 10**400, "expected 1.5"),
    ],
)
def test_the_first_place_that_differs_is_named(expected: Any, found: Any, said: str) -> None:
    assert said in wrong(expected, found)


@pytest.mark.parametrize(
    ("tolerance", "found", "holds"),
    [
        (Tolerance(0.1), 10.1, True),
        (Tolerance(0.1), 10.11, False),
        (Tolerance(0.0, 0.1), 9, True),
        (Tolerance(0.0, 0.1), 8.9, False),
        (Tolerance(2.0, 0.1), 12, True),
        (Tolerance(0.0), 10.0000001, False),
        (Tolerance(1.0), 11, True),
    ],
)
def test_numbers_may_be_off_by_the_larger_of_both(
    tolerance: Tolerance, found: float, holds: bool
) -> None:
    assert (wrong(10, found, tolerance) == "") is holds


def test_within_what_is_said() -> None:
    assert wrong(0.5, 0.7, Tolerance(0.1)) == "$ is 0.7, expected 0.5 within 0.1"
    assert wrong(0.5, 0.7, Tolerance(0, 0.2)) == "$ is 0.7, expected 0.5 within 0.2 of it"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_is_never_near_enough(number: float) -> None:
    assert not Tolerance(1e300, 1e300).allows(1.0, number)


@given(VALUES)
def test_everything_is_as_expected_to_itself(value: Any) -> None:
    assert wrong(json.loads(json.dumps(value)), {"v": value}["v"]) == ""


def test_text_is_compared_and_other_bytes_are_not() -> None:
    golden.compare(case("cat"), Payload(b"cat", handlers.TEXT))
    for answer, said in (
        (Payload(b"cat", "image/png"), "only JSON and text can be compared"),
        (Payload(b"\xff", handlers.TEXT), "golden case 3: the answer: "),
        (Payload(b"{", handlers.JSON), "the body is not JSON"),
    ):
        with pytest.raises(GoldenRefused, match=said):
            golden.compare(case("cat"), answer)


# -- asking ---------------------------------------------------------------------------------------


def doubled(inputs: Any) -> Any:
    return {"y": 2 * inputs}


CASES = golden.parse(lines({"input": 1, "expected": {"y": 2}}, {"input": 2, "expected": {"y": 4}}))


def test_all_are_asked_alone_and_together() -> None:
    golden.check(Handler("m:M", doubled), CASES)
    golden.check(Handler("m:M", doubled, lambda inputs: list(map(doubled, inputs))), CASES)
    golden.check(Handler("m:M", doubled, lambda inputs: []), ())
    with pytest.raises(GoldenRefused, match=r"golden case 2 is answered wrongly: \$.y is 3"):
        golden.check(Handler("m:M", lambda inputs: {"y": inputs + 1}), CASES)
    turned = Handler("m:M", doubled, lambda inputs: list(map(doubled, inputs[::-1])))
    with pytest.raises(GoldenRefused, match=r"golden case 1 is answered wrongly: \$.y is 4"):
        golden.check(turned, CASES)


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        (lambda inputs: {"y": float("nan")}, "golden case 1 was not answered: .*JSON cannot carry"),
        (lambda inputs: {"y": 1 / 0}, "golden case 1 was not answered: ZeroDivisionError"),
    ],
)
def test_what_is_not_answered_is_said(predict: Any, said: str) -> None:
    with pytest.raises(GoldenRefused, match=said):
        golden.check(Handler("m:M", predict), CASES)
    together = Handler("m:M", doubled, lambda inputs: [predict(each) for each in inputs])
    with pytest.raises(GoldenRefused, match="golden cases were not answered together"):
        golden.check(together, CASES)
