"""Trains a classifier of handwritten digits by epochs, on 1,797 real images.

The same by hand (`python train.py`) and under Hatoba (`hatoba run -p lr=0.01 -- python train.py`):
metrics, progress and checkpoints go wherever it runs, and it goes on from the last checkpoint. With
an input `data` (`--input data=datasets/digits`) it learns from that dataset, and with `-p log=1` it
logs what it learned as a version of the model `digits`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import hatoba

Table = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    """Train, log, checkpoint, and leave the model in the outputs."""
    job = hatoba.current_job()
    epochs = int(job.params.get("epochs", 30))
    train_x, train_y, test_x, test_y = images(job.inputs.get("data"))
    model, done = restored(job.latest_checkpoint)
    if model is None:
        model = MLPClassifier(
            hidden_layer_sizes=(int(job.params.get("hidden", 96)),),
            learning_rate_init=float(job.params.get("lr", 0.003)),
            batch_size=16,
            random_state=0,
        )
    accuracy = 0.0
    for epoch in range(done + 1, epochs + 1):
        model.partial_fit(train_x, train_y, classes=np.arange(10))
        accuracy = float(model.score(test_x, test_y))
        job.log_metrics({"loss": float(model.loss_), "accuracy": accuracy}, step=epoch)
        job.progress(epoch, epochs, f"epoch {epoch}/{epochs}")
        print(f"epoch {epoch:3d}  loss {model.loss_:.4f}  accuracy {accuracy:.4f}", flush=True)
        if epoch % 5 == 0 or epoch == epochs:
            with job.checkpoint(epoch, {"accuracy": accuracy}) as directory:
                (Path(directory) / "model.pkl").write_bytes(pickle.dumps((model, epoch)))
    job.outputs.mkdir(parents=True, exist_ok=True)
    (job.outputs / "model.pkl").write_bytes(pickle.dumps(model))
    if job.params.get("log"):
        job.log_model(
            "digits",
            job.outputs,
            handler="serve:Digits",
            example={"pixels": [float(value) for value in test_x[0]]},
            metrics={"accuracy": accuracy},
        )


def images(directory: Path | None) -> tuple[Table, Table, Table, Table]:
    """Pixels from 0 to 1 and digits, to learn from and to be tested with."""
    if directory is not None:
        return (*split(directory / "train"), *split(directory / "test"))
    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels / 16.0, digits, test_size=0.25, random_state=0, stratify=digits
    )
    return train_x, train_y, test_x, test_y


def split(directory: Path) -> tuple[Table, Table]:
    """The images of one split, in folders that are called by their digit."""
    paths = sorted(directory.glob("*/*.png"))
    pixels = [np.asarray(Image.open(path), dtype=float).ravel() / 255 for path in paths]
    return np.stack(pixels), np.array([int(path.parent.name) for path in paths])


def restored(checkpoint: Path | None) -> tuple[MLPClassifier | None, int]:
    """The model of a checkpoint and the epochs it has seen; nothing without one."""
    if checkpoint is None:
        return None, 0
    model, epoch = pickle.loads((checkpoint / "model.pkl").read_bytes())
    return model, epoch


if __name__ == "__main__":
    main()
