"""Answers which digit an image shows: what a deployment runs, and what batch inference runs."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatoba.handlers import BadInput

Input = bytes | dict[str, Any]
_NO_IMAGE = (OSError, SyntaxError, Image.DecompressionBombError, LookupError, TypeError, ValueError)


class Digits:
    """Loaded once for each replica, then asked again and again."""

    def __init__(self, model_dir: Path) -> None:
        self._model = pickle.loads((model_dir / "model.pkl").read_bytes())

    def predict(self, inputs: Input) -> dict[str, Any]:
        """One image, as PNG bytes or as JSON `{"pixels": [64 numbers from 0 to 1]}`."""
        return self.predict_batch([inputs])[0]

    def predict_batch(self, batch: list[Input]) -> list[dict[str, Any]]:
        """Several images at once, which costs little more than one."""
        scores = self._model.predict_proba(np.stack([_pixels(one) for one in batch]))
        return [{"digit": int(row.argmax()), "score": float(row.max())} for row in scores]


def _pixels(inputs: Input) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One row of the model's input; BadInput tells whoever asked what is wrong with theirs."""
    try:
        if isinstance(inputs, bytes):
            image = Image.open(io.BytesIO(inputs)).convert("L")
            values = np.asarray(image, dtype=float).ravel() / 255
        else:
            values = np.asarray(inputs["pixels"], dtype=float).ravel()
    except _NO_IMAGE as error:
        raise BadInput(f"this is no image, and no {{'pixels': [64 numbers]}}: {error!r}") from error
    if values.size != 64:
        raise BadInput(f"an image has 64 pixels, this one has {values.size}")
    return values
