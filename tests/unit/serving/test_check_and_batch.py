"""What the registry's check says, and what a shard of batch inference leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hatoba
from hatoba_worker.serving.batch import share
from hatoba_worker.serving.main import main

HANDLER = """
import hatoba.handlers


class Adds:
    def __init__(self, model_dir):
        self.term = int((model_dir / "term").read_text())

    def predict(self, inputs):
        if isinstance(inputs, bytes):
            return {"bytes": len(inputs)}
        if inputs == "png":
            return b"\\x89", "image/png"
        if inputs == 13:
            raise hatoba.handlers.BadInput("13 is not taken")
        return {"sum": inputs + self.term}


class Counts(Adds):
    def predict_batch(self, inputs):
        print(len(inputs))
        return [0 for _ in inputs]

    def predict(self, inputs):
        print(1)
        return 0


class AddsTogether(Adds):
    def predict_batch(self, inputs):
        return [self.predict(each) for each in inputs]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model with its code and a dataset; the code is forgotten afterwards."""
    for name in ("code", "model", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "adds_handler.py").write_text(HANDLER)
    (tmp_path / "model" / "term").write_text("2")
    for name in ("HATOBA_ATTEMPT", "HATOBA_DIR", "HATOBA_INDEX", "HATOBA_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("adds_handler", None)


def model_arguments(place: Path, handler: str) -> list[str]:
    where = ["--model", str(place / "model"), "--code", str(place / "code")]
    return [*where, "--handler", f"adds_handler:{handler}"]


def check(place: Path, handler: str, example: str, media_type: str = "application/json") -> Any:
    path, report = place / "example", place / "report.json"
    path.write_text(example)
    options = ["--example", str(path), "--media-type", media_type, "--report", str(report)]
    code = main(["check", *model_arguments(place, handler), *options])
    found = json.loads(report.read_text())
    assert code == (0 if found["ok"] else 1)
    return found


def test_a_check_reports_what_it_saw(place: Path) -> None:
    found = check(place, "AddsTogether", "1")
    assert found["ok"]
    assert found["signature"]["output"]["properties"] == {"sum": {"type": "integer"}}
    assert check(place, "Adds", "abc", "text/csv")["signature"]["input_type"] == "text/csv"


@pytest.mark.parametrize(
    ("handler", "example", "kind", "said"),
    [
        ("Absent", "1", "handler_not_found", "no class 'Absent'"),
        ("Adds", "[1", "example_refused", "the body is not JSON"),
        ("Adds", "13", "example_refused", "13 is not taken"),
        ("Adds", '"x"', "example_refused", "TypeError"),
    ],
)
def test_a_check_says_why_not(
    place: Path,
    handler: str,
    example: str,
    kind: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = check(place, handler, example)
    assert (found["ok"], found["kind"]) == (False, kind)
    assert said in found["reason"]
    assert capsys.readouterr().err == f"{found['reason']}\n"


def test_an_example_that_is_not_there_is_refused(place: Path) -> None:
    arguments = [*model_arguments(place, "Adds"), "--example", str(place / "absent")]
    assert main(["check", *arguments]) == 1
    assert main(["check", *model_arguments(place, "Adds")]) == 0


def test_golden_cases_beside_the_model_are_checked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [{"input": 1, "expected": {"sum": 3}}, {"input": 2, "expected": {"sum": 4}}]
    path = place / "model" / "golden.jsonl"
    path.write_text("\n".join(map(json.dumps, cases)))
    arguments = ["check", *model_arguments(place, "AddsTogether"), "--golden", "2"]
    assert main(arguments) == 0
    path.write_text("\n".join(map(json.dumps, [*cases[:1], {**cases[1], "expected": {"sum": 5}}])))
    report = place / "report.json"
    assert main([*arguments, "--report", str(report)]) == 1
    found = json.loads(report.read_text())
    assert (found["ok"], found["kind"]) == (False, "golden_refused")
    assert found["reason"] == "golden case 2 is answered wrongly: $.sum is 4, expected 5"
    assert capsys.readouterr().err == f"{found['reason']}\n"
    path.unlink()
    assert main(arguments) == 1
    assert "cannot be read" in capsys.readouterr().err


# -- batch inference ------------------------------------------------------------------------------


class Shards:
    """Runs shards of one dataset."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.output = place / "output"
        self.spool = place / "spool.jsonl"
        self._environ = monkeypatch

    def items(self, *items: dict[str, Any]) -> None:
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (self.place / "items.jsonl").write_text(lines)

    def run(self, *options: str, index: int = 0, count: int = 1, handler: str = "Adds") -> int:
        self._environ.setenv("HATOBA_ATTEMPT", "a-1")
        self._environ.setenv("HATOBA_DIR", str(self.place))
        self._environ.setenv("HATOBA_INDEX", str(index))
        self._environ.setenv("HATOBA_TASK_COUNT", str(count))
        hatoba.current_job.cache_clear()
        where = ["--data", str(self.place / "data"), "--output", str(self.output)]
        items = self.place / "items.jsonl"
        listed = ["--items", str(items)] if items.exists() else []
        try:
            arguments = model_arguments(self.place, handler)
            return main(["batch", *arguments, *where, *listed, *options])
        finally:
            hatoba.current_job.cache_clear()

    def predictions(self) -> list[Any]:
        path = self.output / "predictions" / "items.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def summary(self) -> Any:
        return json.loads((self.output / "summary.json").read_text())

    def progress(self) -> list[tuple[float, float]]:
        lines = [json.loads(line)["progress"] for line in self.spool.read_text().splitlines()]
        return [(line["done"], line["total"]) for line in lines]


@pytest.fixture
def shards(place: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    return Shards(place, monkeypatch)


def number(value: object, **attributes: object) -> dict[str, Any]:
    return {"id": f"n-{value}", "attributes": {"input": value, **attributes}}


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_are_contiguous_whole_and_even(total: int, count: int) -> None:
    shares = [share(total, index, count) for index in range(count)]
    assert [end for _, end in shares][:-1] == [start for start, _ in shares][1:]
    assert (shares[0][0], shares[-1][1]) == (0, total)
    sizes = {end - start for start, end in shares}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("handler", ["Adds", "AddsTogether"])
def test_a_shard_answers_its_items_in_order(shards: Shards, handler: str) -> None:
    shards.items(*[number(n, label=str(n % 2), split="test", other=1) for n in range(7)])
    assert shards.run(index=1, count=2, handler=handler) == 0
    assert shards.predictions() == [
        {
            "id": f"n-{n}",
            "attributes": {"label": str(n % 2), "split": "test", "prediction": {"sum": n + 2}},
        }
        for n in range(3, 7)
    ]
    assert shards.summary() == {"total": 4, "done": 4, "errors": 0, "first_errors": []}
    assert shards.progress()[-1] == (4, 4)


def test_files_are_read_as_what_they_are(shards: Shards) -> None:
    data = shards.place / "data"
    (data / "deep").mkdir()
    (data / "b.json").write_text("3")
    (data / "a.png").write_bytes(b"\x89PNG")
    (data / "deep" / "c").write_text("4")
    shards.items(
        {"id": "b", "path": "b.json"},
        {"id": "a", "path": "a.png"},
        {"id": "c", "path": "deep/c", "mediaType": "application/json"},
        {"id": "d", "path": "deep/c"},
    )
    assert shards.run() == 0
    assert [each["attributes"]["prediction"] for each in shards.predictions()] == [
        {"sum": 5},
        {"bytes": 4},
        {"sum": 6},
        {"bytes": 1},
    ]


def test_large_inputs_are_not_gathered(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hatoba_worker.serving.batch.MOST_BYTES_TOGETHER", 10)
    for name, size in (("a", 4), ("b", 4), ("c", 4), ("d", 50), ("e", 1)):
        (shards.place / "data" / name).write_bytes(b"x" * size)
    assert shards.run(handler="Counts") == 0
    assert capfd.readouterr().out.split() == ["3", "1", "1"]


def test_without_a_list_every_file_is_an_item(shards: Shards) -> None:
    for name in ("b/2.json", "a/1.json", "c.json"):
        path = shards.place / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    assert shards.run() == 0
    assert [each["id"] for each in shards.predictions()] == ["a/1.json", "b/2.json", "c.json"]


def test_answers_that_are_no_json_are_kept_as_text(shards: Shards) -> None:
    shards.items(number("png"))
    assert shards.run() == 0
    (found,) = shards.predictions()
    assert found["attributes"]["prediction"] == {"media_type": "image/png", "base64": "iQ=="}


BAD = [
    (number(13), "13 is not taken"),
    (number("text"), "TypeError"),
    ({"id": "x", "path": "absent.json"}, "No such file"),
    ({"id": "x", "path": "../model/term"}, "leads out of the dataset"),
    ({"id": "x", "path": "/etc/passwd"}, "leads out of the dataset"),
    ({"id": "x"}, "neither a file nor an attribute"),
]


@pytest.mark.parametrize(("item", "said"), BAD)
def test_the_first_bad_item_fails_the_shard_by_name(
    shards: Shards, item: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shards.items(number(1), item, number(2))
    assert shards.run() == 1
    error = capsys.readouterr().err
    assert f"item {item['id']!r}: " in error
    assert said in error
    assert list(shards.output.rglob("*.jsonl")) == []
    assert not (shards.output / "summary.json").exists()


@pytest.mark.parametrize("handler", ["Adds", "AddsTogether"])
def test_errors_are_recorded_on_their_items(shards: Shards, handler: str) -> None:
    items = [item for item, _ in BAD]
    shards.items(number(1, label="one"), *items, number(2))
    assert shards.run("--on-item-error", "record", handler=handler) == 0
    found = shards.predictions()
    assert [each["id"] for each in found] == ["n-1", *[item["id"] for item in items], "n-2"]
    assert found[0]["attributes"] == {"label": "one", "prediction": {"sum": 3}}
    assert all(
        said in each["attributes"]["error"]
        for each, (_, said) in zip(found[1:-1], BAD, strict=True)
    )
    summary = shards.summary()
    assert (summary["total"], summary["done"], summary["errors"]) == (8, 2, 6)
    assert len(summary["first_errors"]) == 5
    assert summary["first_errors"][0]["id"] == "n-13"


def test_more_errors_than_may_be_fail_the_shard(
    shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    shards.items(*[number(13)] * 3)
    assert shards.run("--on-item-error", "record", "--max-errors", "3") == 0
    assert shards.run("--on-item-error", "record", "--max-errors", "2") == 1
    assert "3 items failed and 2 may" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", "[]", '{"path": "x"}'])
def test_a_list_that_is_none_fails_by_line(
    shards: Shards, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards.place / "items.jsonl").write_text(f'{{"id": "a"}}\n\n{line}\n')
    assert shards.run() == 1
    assert "line 3 of the items" in capsys.readouterr().err


def test_a_handler_that_cannot_be_loaded_fails_the_shard(
    shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    shards.items(number(1))
    assert shards.run(handler="Absent") == 1
    assert "no class 'Absent'" in capsys.readouterr().err
