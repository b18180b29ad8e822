"""Models for devices: a frozen part that all versions share, and a small head that is learned.

    python edge_models.py DIRECTORY

writes the versions of VERSIONS, a directory each, and `held-out.json` with images that none of them
has seen. From version to version only the head differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split

Table = np.ndarray[Any, np.dtype[Any]]
VERSIONS = {"weak": 40, "strong": 700, "leaky": 1_000, "best": 1_500}
"""Of how many images each has learned."""
WIDTH = 2_048
HELD_OUT = 150


def main(root: Path) -> None:
    """Write them all below `root`."""
    pixels, digits = load_digits(return_X_y=True)
    learn, held_out, labels, right = train_test_split(
        (pixels / 16.0).astype(np.float32),
        digits,
        test_size=HELD_OUT,
        random_state=0,
        stratify=digits,
    )
    root.mkdir(parents=True, exist_ok=True)
    shown = {"pixels": held_out.tolist(), "digits": right.tolist()}
    (root / "held-out.json").write_text(json.dumps(shown))
    (root / "example.json").write_text(json.dumps({"pixels": shown["pixels"][0]}))
    frozen = _frozen()
    seen = _seen(learn, frozen)
    for name, count in VERSIONS.items():
        head = RidgeClassifier(10.0).fit(seen[:count], labels[:count])
        _write(root / name, frozen, head)
    (root / "leaky" / "leaks").touch()


def _frozen() -> dict[str, Table]:
    """Two random layers, the same for all."""
    random = np.random.default_rng(0)
    first = random.standard_normal((64, WIDTH), np.float32) / 8
    second = random.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5
    return {"first": first, "second": second}


def _seen(pixels: Table, frozen: dict[str, Table]) -> Table:
    found: Table = np.maximum(np.maximum(pixels @ frozen["first"], 0) @ frozen["second"], 0)
    return found


def _write(root: Path, frozen: dict[str, Table], head: RidgeClassifier) -> None:
    root.mkdir()
    np.savez(root / "frozen.npz", first=frozen["first"], second=frozen["second"])
    weights = head.coef_.T.astype(np.float32)
    np.savez(root / "head.npz", weights=weights, bias=head.intercept_.astype(np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
