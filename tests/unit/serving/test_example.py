"""The digits example says to whoever asked what is wrong with what they sent."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hatoba.handlers import BadInput

SERVE = Path(__file__).parents[3] / "examples" / "digits" / "serve.py"


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    """The handler's module; the environment of tests has what it imports, or it is skipped."""
    pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    spec = importlib.util.spec_from_file_location("digits_serve", SERVE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model:
    """Sure that everything is a three."""

    def predict_proba(self, rows: Any) -> Any:
        return rows * 0 + [float(at == 3) for at in range(64)]


@pytest.mark.parametrize(
    "inputs",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        {},
        {"pixels": [0.5] * 63},
        {"pixels": ["x"] * 64},
        {"pixels": [[0.5], [0.5, 0.5]]},
        {"pixels": None},
        [],
        "text",
        None,
    ],
)
def test_what_is_no_image_is_the_askers_fault(serve: ModuleType, inputs: Any) -> None:
    digits = serve.Digits.__new__(serve.Digits)
    digits._model = Model()
    with pytest.raises(BadInput):
        digits.predict(inputs)


def test_an_image_is_answered(serve: ModuleType) -> None:
    digits = serve.Digits.__new__(serve.Digits)
    digits._model = Model()
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8), 40).save(file, "PNG")
    answers = digits.predict_batch([file.getvalue(), {"pixels": [0.5] * 64}])
    assert answers == [{"digit": 3, "score": 1.0}] * 2
