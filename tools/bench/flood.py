"""A client that submits batches as fast as it is let, until it is ended: `flood.py TARGET TOKEN`.

Its messages are made before; it prints `begun` after its first reply.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc.aio
from bench_house import batch, held_spec
from bench_load import Target, method_of

from hatoba.v1 import job_pb2

SUBMIT_JOBS = "/hatoba.v1.JobService/SubmitJobs"
MESSAGES = 200
PER_MESSAGE = 1_000


async def flood(target: Target) -> None:
    """Send one batch after the other. Raises RuntimeError when a job is refused."""
    messages = [
        batch(held_spec(), number * PER_MESSAGE, PER_MESSAGE).SerializeToString()
        for number in range(MESSAGES)
    ]
    options = [("grpc.max_receive_message_length", 32 << 20)]
    async with grpc.aio.insecure_channel(target.address, options=options) as channel:
        method, told = method_of(channel, target), False
        for message in messages:
            raw = await method(message, metadata=(("authorization", f"Bearer {target.token}"),))
            if not told:
                _check(raw)
                print("begun", flush=True)
                told = True


def _check(raw: bytes) -> None:
    results = job_pb2.SubmitJobsResponse.FromString(raw).results
    bad = [one.message for one in results if one.code]
    if bad:
        raise RuntimeError(f"{len(bad)} jobs refused: {bad[0]}")


if __name__ == "__main__":
    address, token_file = sys.argv[1:3]
    asyncio.run(flood(Target(address, SUBMIT_JOBS, Path(token_file).read_text().strip())))
