"""A model is checked where it was made, and laid aside as it was then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hatoba
from hatoba.golden import GoldenRefused
from hatoba.handlers import ExampleRefused, HandlerFailed, HandlerNotFound
from hatoba.job_context import MAX_LINE_BYTES, JobContext

CLIENT = Path(hatoba.__file__).parents[1]
HANDLER = """
import json
from pathlib import Path


class Doubles:
    def __init__(self, model_dir):
        assert isinstance(model_dir, Path)
        self.factor = int((model_dir / "factor").read_text())

    def predict(self, inputs):
        return {"y": [self.factor * each for each in inputs["x"]]}


class Lengths(Doubles):
    def predict(self, inputs):
        return b"\\0" * len(inputs), "image/png"


class Halves(Doubles):
    def predict_batch(self, inputs):
        return []
"""


@pytest.fixture(autouse=True)
def code() -> Iterator[Path]:
    """The working directory holds a handler, whose module is forgotten afterwards."""
    before = set(sys.modules)
    Path("factor_handler.py").write_text(HANDLER)
    yield Path.cwd()
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's files."""
    directory = tmp_path / "model"
    (directory / "deep").mkdir(parents=True)
    (directory / "factor").write_text("2")
    (directory / "deep" / "weights").write_bytes(b"w" * 5000)
    return directory


@pytest.fixture
def job(tmp_path: Path) -> JobContext:
    """The context of an attempt."""
    directory = tmp_path / "attempt"
    directory.mkdir()
    environ = {"HATOBA_ATTEMPT": "a-1", "HATOBA_DIR": str(directory)}
    return JobContext.from_environment(environ)


def records(job: JobContext) -> list[dict[str, Any]]:
    assert job.spool is not None
    if not job.spool.exists():
        return []
    return [json.loads(line)["model"] for line in job.spool.read_text().splitlines()]


def place(job: JobContext, number: int = 1) -> Path:
    assert job.directory is not None
    return job.directory / "models" / str(number)


def test_a_model_is_laid_aside_with_what_was_seen(job: JobContext, model: Path) -> None:
    job.log_model(
        "digits",
        model,
        handler="factor_handler:Doubles",
        example={"x": [1, 2.5]},
        metrics={"accuracy": 0.97},
        description="the first",
        labels={"team": "a"},
        parent="digits:6",
        max_batch=8,
        batch_wait_ms=2.5,
    )
    (record,) = records(job)
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    assert record.pop("signature") == {
        "input_type": "application/json",
        "output_type": "application/json",
        "input": {"type": "object", "properties": {"x": numbers}, "required": ["x"]},
        "output": {"type": "object", "properties": {"y": numbers}, "required": ["y"]},
    }
    assert record == {
        "number": 1,
        "model": "digits",
        "handler": "factor_handler:Doubles",
        "own_code": False,
        "example": "application/json",
        "golden": 0,
        "metrics": {"accuracy": 0.97},
        "description": "the first",
        "labels": {"team": "a"},
        "parent": "digits:6",
        "max_batch": 8,
        "batch_wait_ms": 2.5,
    }
    assert (place(job) / "files/deep/weights").read_bytes() == b"w" * 5000
    assert (place(job) / "example").read_bytes() == b'{"x":[1,2.5]}'
    assert not (place(job) / "code").exists()


def test_what_is_saved_later_is_no_part_of_it(job: JobContext, model: Path) -> None:
    job.log_model("digits", model)
    (model / "factor").write_text("3")
    (model / "deep" / "weights").unlink()
    job.log_model("digits", model)
    assert (place(job, 1) / "files/factor").read_text() == "2"
    assert (place(job, 1) / "files/deep/weights").exists()
    assert (place(job, 2) / "files/factor").read_text() == "3"
    assert [record["number"] for record in records(job)] == [1, 2]


def test_one_file_is_a_model(job: JobContext, model: Path) -> None:
    job.log_model("digits", model / "factor", handler="factor_handler:Doubles", example={"x": [1]})
    assert os.listdir(place(job) / "files") == ["factor"]


def test_links_are_followed(job: JobContext, model: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("far away")
    (model / "link").symlink_to(tmp_path / "blob")
    job.log_model("digits", model)
    kept = place(job) / "files/link"
    assert not kept.is_symlink()
    assert kept.read_text() == "far away"


def test_code_of_its_own_comes_along_without_caches(
    job: JobContext, model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "__pycache__").mkdir(parents=True)
    (own / "own_handler.py").write_text(HANDLER)
    before = list(sys.path)
    job.log_model("digits", model, handler="own_handler:Doubles", example={"x": []}, code=own)
    assert sys.path == before
    assert os.listdir(place(job) / "code") == ["own_handler.py"]
    assert records(job)[0]["own_code"] is True


def test_bytes_go_in_and_out(job: JobContext, model: Path) -> None:
    job.log_model("d", model, handler="factor_handler:Lengths", example=(b"\x89PNG", "image/png"))
    (record,) = records(job)
    assert record["example"] == "image/png"
    assert record["signature"] == {"input_type": "image/png", "output_type": "image/png"}
    assert (place(job) / "example").read_bytes() == b"\x89PNG"


def test_golden_cases_are_answered_and_lie_among_its_files(job: JobContext, model: Path) -> None:
    made: dict[str, Any] = {"handler": "factor_handler:Doubles", "example": {"x": [1]}}
    cases: list[dict[str, Any]] = [{"input": {"x": [2]}, "expected": {"y": [4]}}]
    job.log_model("digits", model, golden=cases, **made)
    assert records(job)[0]["golden"] == 1
    kept = place(job) / "files/golden.jsonl"
    assert json.loads(kept.read_bytes()) == cases[0]
    job.log_model("digits", model / "factor", golden=kept, **made)
    assert (place(job, 2) / "files/golden.jsonl").read_bytes() == kept.read_bytes()
    cases.append({"input": {"x": [2, 3]}, "expected": {"y": [4, 9]}, "tolerance": 1})
    with pytest.raises(
        GoldenRefused, match=r"golden case 2 .*: \$.y\[1\] is 6, expected 9 within 1"
    ):
        job.log_model("digits", model, golden=cases, **made)
    (model / "golden.jsonl").write_text("mine")
    with pytest.raises(GoldenRefused, match=r"has another golden.jsonl of its own"):
        job.log_model("digits", model, golden=cases[:1], **made)
    assert len(records(job)) == 2


class Array:
    """What numpy's arrays can do, without numpy."""

    def tolist(self) -> list[list[int]]:
        return [[1, 2, 3], [4, 5, 6]]


def test_arrays_are_lists_and_their_shape_is_seen(job: JobContext, model: Path) -> None:
    job.log_model("d", model, handler="factor_handler:Doubles", example={"x": Array()})
    signature = records(job)[0]["signature"]
    assert signature["input"]["properties"]["x"]["shape"] == [2, 3]
    assert (place(job) / "example").read_bytes() == b'{"x":[[1,2,3],[4,5,6]]}'


@pytest.mark.parametrize(
    ("handler", "error", "said"),
    [
        ("nothing:Doubles", HandlerNotFound, "there is no module 'nothing': put nothing.py into"),
        ("factor_handler:Double", HandlerNotFound, "no class 'Double'; its classes: Doubles"),
        ("factor_handler", HandlerNotFound, "is not MODULE:CLASS"),
        ("lacking:X", HandlerNotFound, "needs 'not_installed_anywhere', which is not installed"),
        ("broken:X", HandlerNotFound, r"SyntaxError"),
        ("raising:X", HandlerNotFound, r"ZeroDivisionError: division by zero \(raising.py, line 1"),
        ("exits:X", HandlerNotFound, "SystemExit: 3"),
        ("json:X", HandlerNotFound, "give the handler's module another name"),
        ("odd:Bare", HandlerFailed, "has no method `predict"),
        ("odd:Later", HandlerFailed, "is `async`; write a plain function"),
        ("odd:Empty", HandlerFailed, r"cannot be made .*FileNotFoundError.*\(.*, line"),
        ("odd:Raises", ExampleRefused, r"KeyError: 'z' \(odd.py, line"),
        ("odd:Refuses", ExampleRefused, "there have to be 64 pixels"),
        ("odd:Strange", ExampleRefused, "returned set, which JSON cannot carry"),
        ("odd:Nothing", ExampleRefused, "not JSON compliant"),
        ("factor_handler:Halves", ExampleRefused, "gave 0 answers to 1 inputs"),
    ],
)
def test_what_could_not_be_served_raises_in_the_job(
    job: JobContext, model: Path, handler: str, error: type[Exception], said: str
) -> None:
    Path("lacking.py").write_text("import not_installed_anywhere")
    Path("broken.py").write_text("def")
    Path("raising.py").write_text("1 / 0")
    Path("exits.py").write_text("import sys; sys.exit(3)")
    Path("json.py").write_text("class X: pass")
    Path("odd.py").write_text(
        "import hatoba.handlers\n"
        "class Bare: pass\n"
        "class Later:\n  async def predict(self, inputs): pass\n"
        "class Odd:\n  def __init__(self, model_dir): pass\n"
        "class Empty(Odd):\n"
        "  def __init__(self, model_dir): (model_dir / 'absent').read_text()\n"
        "  def predict(self, inputs): pass\n"
        "class Raises(Odd):\n  def predict(self, inputs): return inputs['z']\n"
        "class Refuses(Odd):\n"
        "  def predict(self, inputs):\n"
        "    raise hatoba.handlers.BadInput('there have to be 64 pixels')\n"
        "class Strange(Odd):\n  def predict(self, inputs): return {1, 2}\n"
        "class Nothing(Odd):\n  def predict(self, inputs): return float('nan')\n"
    )
    with pytest.raises(error, match=said):
        job.log_model("digits", model, handler=handler, example={"x": [1]})
    assert records(job) == []
    assert not place(job).exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Digits"}, "is no name of a model"),
        ({"path": "absent"}, "there is nothing at absent"),
        ({"path": "empty"}, "is empty"),
        ({"path": "."}, "holds the job's own directory"),
        ({"example": 1}, "an example needs a handler"),
        ({"golden": []}, "golden cases need an example too"),
        ({"code": "absent"}, "there is no directory absent"),
        ({"metrics": {"loss": float("nan")}}, "metric 'loss'"),
        ({"metrics": {str(n): n for n in range(257)}}, "at most 256 metrics"),
        ({"labels": {"a b": "c"}}, "label 'a b'"),
        ({"description": "x" * 4097}, "4097 characters"),
        ({"max_batch": 5000}, "max_batch"),
    ],
)
def test_what_cannot_be_a_model_raises(
    job: JobContext, model: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    os.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=said):
        job.log_model(**{"name": "digits", "path": model, **fields})
    assert records(job) == []
    assert not place(job).exists()


def test_examples_have_a_size(job: JobContext, model: Path) -> None:
    handler = "factor_handler:Lengths"
    with pytest.raises(ExampleRefused, match=r"262,145 bytes and may have\s+262,144"):
        job.log_model("d", model, handler=handler, example=b"x" * (256 * 1024 + 1))
    for _ in range(8):
        job.log_model("d", model, handler=handler, example=b"x" * (256 * 1024))
    with pytest.raises(ExampleRefused, match="together"):
        job.log_model("d", model, handler=handler, example=b"x")
    assert len(records(job)) == 8


def test_there_is_an_end_to_models_and_to_what_is_said_of_them(
    job: JobContext, model: Path
) -> None:
    labels = {f"label-{n}": "\N{CJK UNIFIED IDEOGRAPH-6CE2}" * 256 for n in range(64)}
    metrics = {f"{n:0128}": 1.0 for n in range(256)}
    with pytest.raises(ValueError, match=f"may have {MAX_LINE_BYTES:,}"):
        job.log_model("d", model, labels=labels, metrics=metrics)
    for _ in range(16):
        job.log_model("d", model)
    with pytest.raises(ValueError, match="at most 16 models"):
        job.log_model("d", model)
    assert len(records(job)) == 16


def test_a_spool_that_cannot_be_written_raises(job: JobContext, model: Path) -> None:
    job.spool = Path("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        job.log_model("d", model)


def test_a_handler_in_a_script_that_trains_is_told(job: JobContext, model: Path) -> None:
    Path("trains.py").write_text(
        "import hatoba.handlers as h, pathlib\n"
        "h.load('trains:X', pathlib.Path('.'), pathlib.Path('.'))\n"
    )
    with pytest.raises(HandlerNotFound, match='if __name__ == "__main__"'):
        job.log_model("d", model, handler="trains:X")


def test_outside_the_same_is_checked_and_nothing_is_kept(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobContext.from_environment({})
    before = sorted(os.listdir())
    job.log_model("d", model, handler="factor_handler:Doubles", example={"x": [1]})
    assert sorted({*os.listdir()} - {"__pycache__"}) == sorted({*before} - {"__pycache__"})
    assert "outside Hatoba it is not kept" in capsys.readouterr().err
    with pytest.raises(ExampleRefused):
        job.log_model("d", model, handler="factor_handler:Doubles", example={"z": 1})


def test_it_needs_the_standard_library_only(model: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(CLIENT)!r}); import hatoba;"
        f"hatoba.current_job().log_model('d', {str(model)!r}, handler='factor_handler:Doubles',"
        "example={'x': [1]}); print(sorted(n for n in sys.modules if n.startswith('hatoba')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    names = ["hatoba", "hatoba.golden", "hatoba.handlers", "hatoba.job_context"]
    names.append("hatoba.logged_models")
    assert done.stdout.strip() == str(names)


def test_an_input_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "inputs" / "faces").mkdir(parents=True)
    job = JobContext(inputs_dir=tmp_path / "inputs")
    assert job.input("faces") == tmp_path / "inputs" / "faces"
    with pytest.raises(FileNotFoundError, match=r"no input 'face' in .*: faces"):
        job.input("face")
