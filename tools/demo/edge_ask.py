"""Asks a model on the device that it runs on: `python edge_ask.py HOST:PORT HELD_OUT.json`.

Prints the share of the images that it recognises.
"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection
from pathlib import Path


def main(address: str, held_out: Path) -> float:
    """Ask about all of them."""
    shown = json.loads(held_out.read_text())
    connection = HTTPConnection(address, timeout=30)
    right = 0
    for pixels, digit in zip(shown["pixels"], shown["digits"], strict=True):
        body = json.dumps({"pixels": pixels})
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        right += json.loads(connection.getresponse().read())["digit"] == digit
    return right / len(shown["digits"])


if __name__ == "__main__":
    print(f"{main(sys.argv[1], Path(sys.argv[2])):.4f}")
