"""Writes 1,797 real images of handwritten digits as PNG files: `images/SPLIT/LABEL/NUMBER.png`.

Every fourth image is held out for the tests, chosen so that each digit has its share.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main(root: Path) -> None:
    """Write all images below `root`."""
    images, labels = load_digits(return_X_y=True)
    numbers = np.arange(len(images))
    train, _ = train_test_split(numbers, test_size=0.25, random_state=0, stratify=labels)
    held_out = set(numbers) - set(train)
    for number in numbers:
        split = "test" if number in held_out else "train"
        directory = root / split / str(labels[number])
        directory.mkdir(parents=True, exist_ok=True)
        pixels = (images[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:04d}.png")
    print(f"{len(images):,} images, {len(held_out)} of them held out")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "images"))
