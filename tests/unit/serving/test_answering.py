"""One bad input spoils no other, and whatever a handler does becomes an answer."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from hatoba import handlers
from hatoba.handlers import BadInput, Handler, Payload
from hatoba_worker.serving.answering import Outcome, Question, answer


def question(body: str, trace: str = "") -> Question:
    return Question(Payload(body.encode(), handlers.JSON), trace)


def told(outcomes: list[Outcome]) -> list[Any]:
    """Answers of those that went well, status and kind of the others."""
    return [
        json.loads(each.payload.data) if each.status == 200 else (each.status, each.kind)
        for each in outcomes
    ]


def half(inputs: Any) -> Any:
    if inputs == "bad":
        raise BadInput("no text, please")
    if inputs == "exit":
        sys.exit(3)
    if inputs == "set":
        return {1}
    return 10 / inputs


def halves(inputs: list[Any]) -> list[Any]:
    return [half(each) for each in inputs]


ALONE = Handler("h:H", half)
TOGETHER = Handler("h:H", half, halves)


@pytest.mark.parametrize("handler", [ALONE, TOGETHER])
def test_each_gets_its_own_answer(handler: Handler, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = ["1", "0", '"bad"', "{", "2", '"exit"', '"set"']
    outcomes = answer(handler, [question(body) for body in bodies])
    assert told(outcomes) == [
        10.0,
        (500, "predict_failed"),
        (400, "bad_input"),
        (400, "bad_input"),
        5.0,
        (500, "predict_failed"),
        (500, "handler_failed"),
    ]
    assert outcomes[1].error.startswith("ZeroDivisionError: ")
    assert json.loads(outcomes[2].payload.data) == {"error": "no text, please", "kind": "bad_input"}
    assert "line 1, column 2" in outcomes[3].error
    assert "Traceback" in capsys.readouterr().err


def test_good_ones_are_answered_together_whatever_else_came() -> None:
    asked: list[list[Any]] = []

    def together(inputs: list[Any]) -> list[Any]:
        asked.append(inputs)
        return [each * 2 for each in inputs]

    handler = Handler("h:H", lambda _: pytest.fail("alone"), together)
    assert told(answer(handler, [question("1"), question("{"), question("3")])) == [
        2,
        (400, "bad_input"),
        6,
    ]
    assert asked == [[1, 3]]
    assert told(answer(handler, [question("{"), question("[")])) == [(400, "bad_input")] * 2


@pytest.mark.parametrize("results", [[1], [1, 2, 3], None])
def test_a_batch_without_an_answer_for_each_goes_one_by_one(
    results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = Handler("h:H", lambda inputs: inputs, lambda _: results)
    assert told(answer(handler, [question("1"), question("2")])) == [1, 2]
    assert "each goes alone" in capsys.readouterr().err


def test_inputs_that_a_failed_batch_changed_are_read_again() -> None:
    def spoils(inputs: list[list[int]]) -> list[Any]:
        inputs[1].clear()
        raise ValueError

    handler = Handler("h:H", len, spoils)
    assert told(answer(handler, [question("[1]"), question("[1, 2]")])) == [1, 2]


def test_the_trace_is_that_of_the_request_and_of_a_batch_its_first() -> None:
    handler = Handler(
        "h:H",
        lambda _: [handlers.current_trace()],
        lambda inputs: [[handlers.current_trace()] for _ in inputs],
    )
    assert told(answer(handler, [question("1", "00-a")])) == [["00-a"]]
    assert told(answer(handler, [question("1", "00-a"), question("1", "00-b")])) == [["00-a"]] * 2
    assert handlers.current_trace() == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expecting value at line 1, column 1"),
        (b"{'a': 1}", "line 1, column 2"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"[1, NaN]", "NaN is no number of JSON"),
        (b"\xff\xfe", "no UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "is not JSON"),
        (b"1 2", "Extra data at line 1, column 3"),
    ],
)
def test_json_that_is_not_is_refused_by_position(body: bytes, said: str) -> None:
    (outcome,) = answer(ALONE, [Question(Payload(body, "application/json; charset=utf-8"))])
    assert outcome.status == 400
    assert said in outcome.error


@pytest.mark.parametrize(
    ("result", "data", "media_type"),
    [
        (b"\x00", b"\x00", handlers.BYTES),
        (memoryview(b"ab"), b"ab", handlers.BYTES),
        ("Zoë", "Zoë".encode(), handlers.TEXT),
        ((b"png", "image/png"), b"png", "image/png"),
        (("a", "b"), b'["a","b"]', handlers.JSON),
        ({"é": None}, '{"é":null}'.encode(), handlers.JSON),
    ],
)
def test_what_is_returned_goes_out_as_what_it_is(result: Any, data: bytes, media_type: str) -> None:
    (outcome,) = answer(Handler("h:H", lambda _: result), [question("1")])
    assert outcome == Outcome(200, Payload(data, media_type))


def test_a_media_type_that_would_be_a_header_of_its_own_is_refused() -> None:
    handler = Handler("h:H", lambda _: (b"", "a/b\r\nset-cookie: x"))
    (outcome,) = answer(handler, [question("1")])
    assert (outcome.status, outcome.kind) == (500, "handler_failed")


def test_numpy_goes_in_no_module_of_ours_and_comes_out_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    row = {"p": numpy.float32(0.5), "n": numpy.int64(3), "a": numpy.eye(2), "b": numpy.True_}
    (outcome,) = answer(Handler("h:H", lambda _: row), [question("1")])
    assert told([outcome]) == [{"p": 0.5, "n": 3, "a": [[1, 0], [0, 1]], "b": True}]
