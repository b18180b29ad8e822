"""What a prediction comes to: run in threads, never raising."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from hatoba import handlers
from hatoba.handlers import BadInput, Handler, HandlerFailed, Payload


class Outcome(NamedTuple):
    """An HTTP status with its body; `kind` and `error` say what went wrong."""

    status: int
    payload: Payload
    kind: str = ""
    error: str = ""


class Question(NamedTuple):
    """One input with the `traceparent` it came with."""

    payload: Payload
    trace: str = ""


def failure(status: int, kind: str, error: str) -> Outcome:
    """An error as people and programs are told of it."""
    body = json.dumps({"error": error, "kind": kind}, ensure_ascii=False)
    return Outcome(status, Payload(body.encode(errors="replace"), handlers.JSON), kind, error)


def answer(handler: Handler, questions: Sequence[Question]) -> list[Outcome]:
    """Answer all, together where the handler can; a bad one among them spoils no other."""
    if len(questions) > 1 and handler.predict_batch is not None:
        outcomes = _together(handler, questions)
        if outcomes is not None:
            return outcomes
    return [_guarded(partial(_alone, handler, each)) for each in questions]


def _alone(handler: Handler, question: Question) -> Outcome:
    inputs = handlers.decode(question.payload)
    with handlers.traced(question.trace):
        return Outcome(200, handlers.encode(handler.predict(inputs)))


def _together(handler: Handler, questions: Sequence[Question]) -> list[Outcome] | None:
    """One answer to each, or None when `predict_batch` failed on them."""
    inputs = [_decoded(each.payload) for each in questions]
    good = [each for each in inputs if not isinstance(each, Outcome)]
    try:
        with handlers.traced(questions[0].trace):
            results = iter(handler.together(good) if good else [])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a model's author may raise anything
        line = handlers.last_line(error)
        sys.stderr.write(f"predict_batch failed on {len(good)} inputs, each goes alone: {line}\n")
        return None
    return [each if isinstance(each, Outcome) else _encoded(next(results)) for each in inputs]


def _decoded(payload: Payload) -> Any:
    try:
        return handlers.decode(payload)
    except BadInput as error:
        return failure(400, error.kind, str(error))


def _encoded(result: Any) -> Outcome:
    return _guarded(lambda: Outcome(200, handlers.encode(result)))


def _guarded(make: Callable[[], Outcome]) -> Outcome:
    try:
        return make()
    except BadInput as error:
        return failure(400, error.kind, str(error))
    except HandlerFailed as error:
        return failure(500, error.kind, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a model's author may raise anything
        # Whoever asked gets a line of it; the rest is for the handler's author.
        traceback.print_exc()
        return failure(500, "predict_failed", handlers.last_line(error))
