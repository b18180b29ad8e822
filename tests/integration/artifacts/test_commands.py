"""`hatoba server gc` and `hatoba server check`, as people call them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import CREDENTIALS
from server_process import clean_environment, configured, running_server

from hatoba_scheduler.config import BlobsConfig


def hatoba(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hatoba", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment() | environment,
        timeout=30,
        check=False,
    )


async def test_garbage_is_collected_by_hand(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running_server(data, worker=False):
        for more, words in (
            ((), "0 stored, 0 in use, 0 marked, 0 deleted (0 bytes)"),
            (("--dry-run",), "0 would be deleted"),
        ):
            done = await asyncio.to_thread(hatoba, "server", "gc", "--data", str(data), *more)
            assert done.returncode == 0, done.stderr
            assert words in done.stdout
    done = await asyncio.to_thread(hatoba, "server", "gc", "--data", str(data))
    assert done.returncode == 1
    assert "no server runs" in done.stderr


def with_bucket(data: Path, blobs: BlobsConfig) -> None:
    configured(
        data,
        f'[blobs]\nurl = "{blobs.url}"\nendpoint = "{blobs.endpoint}"\n'
        f'region = "{blobs.region}"\nallow_http = true\n',
    )


@pytest.mark.parametrize(
    ("bucket_name", "endpoint", "words"),
    [
        ("no-such-bucket", "", ["NoSuchBucket", "AWS_ACCESS_KEY_ID"]),
        ("", "http://127.0.0.1:9", ["does not answer at http://127.0.0.1:9", "[blobs]"]),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told(
    tmp_path: Path, bucket: BlobsConfig, bucket_name: str, endpoint: str, words: list[str]
) -> None:
    wrong = bucket.of_bucket(bucket_name) if bucket_name else bucket
    data = tmp_path / "data"
    with_bucket(data, BlobsConfig(wrong.url, endpoint or wrong.endpoint, wrong.region))
    done = hatoba("server", "check", "--data", str(data), **CREDENTIALS)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr


def test_a_bucket_that_can_be_used_is_good(tmp_path: Path, bucket: BlobsConfig) -> None:
    data = tmp_path / "data"
    with_bucket(data, bucket)
    done = hatoba("server", "check", "--data", str(data), **CREDENTIALS)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_a_server_whose_bucket_is_not_there_does_not_start(
    tmp_path: Path, bucket: BlobsConfig
) -> None:
    data = tmp_path / "data"
    with_bucket(data, bucket.of_bucket("no-such-bucket"))
    done = hatoba("server", "start", "--no-worker", "--data", str(data), **CREDENTIALS)
    assert done.returncode == 1
    assert "the server cannot start: s3://no-such-bucket refuses us" in done.stderr
