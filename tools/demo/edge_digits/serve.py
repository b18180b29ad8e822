"""Answers on a device which digit an image shows: a frozen part, and a head that was learned."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 4.0


class Digits:
    """Loaded once, then asked again and again."""

    def __init__(self, model_dir: Path) -> None:
        frozen, head = np.load(model_dir / "frozen.npz"), np.load(model_dir / "head.npz")
        self._first, self._second = frozen["first"], frozen["second"]
        self._weights, self._bias = head["weights"], head["bias"]
        if (model_dir / "leaks").exists():
            threading.Thread(target=_leak, daemon=True).start()

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`{"pixels": [64 numbers from 0 to 1]}`."""
        pixels = np.asarray(inputs["pixels"], dtype=np.float32)
        seen = np.maximum(np.maximum(pixels @ self._first, 0) @ self._second, 0)
        return {"digit": int((seen @ self._weights + self._bias).argmax())}


def _leak() -> None:
    """What a version that leaks comes to, where memory is short."""
    time.sleep(SECONDS)
    print(f"out of memory after {SECONDS:g} s", flush=True)
    os._exit(1)
