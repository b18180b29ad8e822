"""Says of model versions which image their replicas run in: `hatoba images build` does it for those
that it builds.

    python edge_record.py NAME DIGEST VERSION...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hatoba import Client
from hatoba.v1 import model_pb2


def main(name: str, digest: str, versions: Sequence[str]) -> None:
    """All of them are for amd64 alone."""
    image = model_pb2.ModelImage(architecture="amd64", reference=name, digest=digest, pushed=True)
    with Client() as client:
        for version in versions:
            client.models.record_images(client.models.get(version).name, [image])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
