from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba.v1 import model_pb2, runner_pb2
from hatoba_worker import spool
from hatoba_worker.attempts import Checkpoint


def line(**body: object) -> bytes:
    return json.dumps({"t": 1.5, **body}).encode() + b"\n"


def model(**fields: object) -> dict[str, object]:
    """A model as a job says it."""
    return {
        "number": 3,
        "model": "digits",
        "handler": "serve:Digits",
        "own_code": True,
        "example": "application/json",
        "signature": {"input_type": "application/json", "input": {"type": "integer"}},
        "metrics": {"acc": 0.5},
        "description": "d",
        "labels": {"team": "a"},
        "parent": "digits:6",
        "max_batch": 8,
        "batch_wait_ms": 2.5,
        **fields,
    }


def test_a_model_is_told_in_the_words_of_the_contract() -> None:
    (found,) = spool.parse(line(model=model()), 0).models
    assert (found.number, found.own_code) == (3, True)
    expected = runner_pb2.LoggedModel(
        model="digits",
        serving=model_pb2.Serving(
            handler="serve:Digits",
            example=model_pb2.Payload(media_type="application/json"),
            max_batch=8,
            batch_wait_ms=2.5,
        ),
        signature=model_pb2.Signature(input_type="application/json"),
        metrics={"acc": 0.5},
        description="d",
        labels={"team": "a"},
        parent="digits:6",
    )
    expected.signature.input["type"] = "integer"
    assert found.model == expected


def test_a_model_without_example_has_none() -> None:
    (found,) = spool.parse(line(model=model(example="", handler="", signature={})), 0).models
    assert not found.model.serving.HasField("example")


def test_golden_cases_of_a_model_are_counted() -> None:
    (found,) = spool.parse(line(model=model(golden=64)), 0).models
    assert found.model.serving.golden == 64


def test_the_three_other_kinds_of_lines() -> None:
    data = (
        line(metrics={"loss": 2, "bad": "NaN", "big": "-Infinity"}, step=3)
        + line(progress={"done": 1, "total": 4, "message": "one"})
        + line(checkpoint={"step": 9, "dir": "step-9", "metrics": {"acc": 0.5}})
    )
    found = spool.parse(data, 100)
    assert found.end == 100 + len(data)
    assert [(each.key, each.step) for each in found.samples] == [
        ("loss", 3),
        ("bad", 3),
        ("big", 3),
    ]
    assert math.isnan(found.samples[1].value)
    assert found.samples[2].value == -math.inf
    assert found.samples[0].time.ToNanoseconds() == 1_500_000_000
    assert found.progress is not None
    assert (found.progress.done, found.progress.message) == (1, "one")
    assert found.checkpoint == Checkpoint(9, "step-9", {"acc": 0.5})
    assert found.malformed == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"\n",
        b"[]\n",
        b"7\n",
        b"{}\n",
        b'{"t": 1}\n',
        b'{"t": "soon", "metrics": {}}\n',
        b'{"t": -1, "metrics": {}}\n',
        b'{"t": 1e300, "metrics": {}}\n',
        b"[" * 50_000 + b"\n",
        b"\xff\xfe\n",
        line(metrics={"loss": True}),
        line(metrics={"loss": None}),
        line(metrics={"": 1}),
        line(metrics={"k" * 129: 1}),
        line(metrics={"loss": 1}, step=1.5),
        line(metrics={"loss": 1}, step=1 << 63),
        line(metrics={"loss": 10**400}),
        line(metrics={"loss": "inf"}),
        line(metrics={"\ud800": 1}),
        line(metrics={str(n): n for n in range(501)}),
        line(progress={"done": "x"}),
        line(checkpoint={"step": 1, "dir": "../../etc"}),
        line(checkpoint={"step": 1, "dir": "step-1/.."}),
        line(checkpoint={"step": "1", "dir": "step-1"}),
        line(model={}),
        line(model=model(number=0)),
        line(model=model(number=True)),
        line(model=model(number="1/../2")),
        line(model=model(model="Digits")),
        line(model=model(handler="serve")),
        line(model=model(example="x" * 129)),
        line(model=model(signature={"shape": 1})),
        line(model=model(golden=65)),
        line(model=model(golden=-1)),
        line(model=model(golden="1")),
        line(model=model(signature={"output_type": "x" * 129})),
        line(model=model(metrics={str(n): n for n in range(257)})),
        line(model=model(labels={str(n): "" for n in range(65)})),
        line(model=model(labels={"a": 1})),
        line(model=model(description="x" * 4097)),
        line(model=model(parent=None)),
        line(model=model(max_batch=4097)),
        line(model=model(batch_wait_ms="NaN")),
        line(checkpoint={"step": 1, "dir": "step-1", "metrics": {str(n): n for n in range(257)}}),
    ],
)
def test_what_does_not_fit_is_counted_and_left_out(bad: bytes) -> None:
    good = line(metrics={"loss": 1})
    found = spool.parse(bad + good, 0)
    assert found.malformed == 1
    assert found.models == []
    assert [each.key for each in found.samples] == ["loss"]
    assert found.end == len(bad) + len(good)


def test_an_unfinished_line_is_left_for_later() -> None:
    whole, part = line(metrics={"loss": 1}), line(metrics={"acc": 1})[:-1]
    assert spool.parse(whole + part, 0).end == len(whole)
    assert spool.parse(part, 0).end == 0


def test_a_line_without_end_is_stepped_over() -> None:
    found = spool.parse(b"x" * spool.PIECE, 10)
    assert (found.end, found.malformed) == (10 + spool.PIECE, 1)


def test_a_report_is_never_larger_than_the_server_takes() -> None:
    many = line(metrics={str(n): n for n in range(499)})
    found = spool.parse(many * 10, 0)
    assert len(found.samples) == 998
    assert found.end == 2 * len(many)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 400))
def test_however_it_is_cut_every_line_is_read_once(lines: list[bytes], cut: int) -> None:
    data = b"".join(each.replace(b"\n", b"") + b"\n" for each in lines)
    first = spool.parse(data[:cut], 0)
    second = spool.parse(data[first.end :], first.end)
    assert second.end == len(data)
    assert first.malformed + second.malformed == len(lines)
