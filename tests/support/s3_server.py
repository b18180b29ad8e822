"""An S3 of moto's as a process of its own, with buckets that a test makes, denies and fills."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import obstore
from obstore.store import S3Store

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-emulators" / "bin" / "python"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "hatoba-test",
    "AWS_SECRET_ACCESS_KEY": "hatoba-test-secret",
    "AWS_REGION": "us-east-1",
}
STOPPED_WITHIN = 20.0
_SERVE = """
import logging, sys
import boto3
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
print(port, flush=True)
client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
for line in sys.stdin:
    client.create_bucket(Bucket=line.strip())
    print("made", flush=True)
server.stop()
"""


class S3Server:
    """Where it answers, and what a test does with its buckets. Everything here blocks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders = process.stdin
        self._replies = process.stdout
        self.endpoint = f"http://127.0.0.1:{int(self._replies.readline())}"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        print(name, file=self._orders, flush=True)
        assert self._replies.readline() == "made\n"

    def store(self, bucket: str) -> S3Store:
        """The bucket as obstore sees it."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            client_options=cast(Any, {"allow_http": True}),
        )

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put objects by key."""
        store = self.store(bucket)
        for key, data in objects.items():
            obstore.put(store, key, data)

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket, sorted."""
        return sorted(one["path"] for page in obstore.list(self.store(bucket)) for one in page)


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """An S3 on a port of its own; gone at the end. `make venv-emulators` makes what it needs."""
    process = subprocess.Popen(
        [PYTHON, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **CREDENTIALS},
        text=True,
    )
    try:
        yield S3Server(process)
    finally:
        process.communicate(timeout=STOPPED_WITHIN)
