"""The floor of calls: the server's own front before a job service that does nothing.

`floor_server.py DATA READY_FILE [bare]`: the same interceptor, tokens, rules, traces and metrics as
the product's server, or with `bare` no interceptor; SubmitJob answers with a constant job,
SubmitJobs with empty results.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from bench_house import held_spec
from google.protobuf.timestamp_pb2 import Timestamp

from hatoba.sampling import RateSampler
from hatoba.v1 import common_pb2, job_pb2
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.files import ensure_token_files
from hatoba_scheduler.config import Config
from hatoba_scheduler.interceptors import Admission, CallLimits, Front, Phase, server_options
from hatoba_scheduler.store.sqlite import open_store, tune_interpreter
from hatoba_scheduler.telemetry.logging import configure_logging
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.trace_store import TraceStore
from hatoba_scheduler.telemetry.tracing import Tracer
from hatoba_scheduler.validation import warm

Context = grpc.aio.ServicerContext[Any, Any]


REPLY = job_pb2.Job(
    name="projects/default/jobs/bench-1000",
    uid="0197f0a0-0000-7000-8000-000000000000",
    spec=held_spec(),
    state=common_pb2.JOB_STATE_HELD,
    desired=common_pb2.DESIRED_RUN,
    counts=common_pb2.TaskCounts(total=1, by_state={"HELD": 1}),
    version=1,
    etag="0123456789abcdef",
    created_by="admin",
    create_time=Timestamp(seconds=1_700_000_000, nanos=123_456_000),
    trace_id="0123456789abcdef0123456789abcdef",
)
"""Of the size that the reply to the benchmark's submit has."""


async def submit_job(request: job_pb2.SubmitJobRequest, context: Context) -> job_pb2.Job:
    """Always the same job."""
    return REPLY


async def submit_jobs(
    request: job_pb2.SubmitJobsRequest, context: Context
) -> job_pb2.SubmitJobsResponse:
    """As many empty results as there are items."""
    results = [job_pb2.SubmitJobsResult() for _ in request.items]
    return job_pb2.SubmitJobsResponse(results=results)


def _serve_jobs(server: grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "SubmitJob": grpc.unary_unary_rpc_method_handler(
            submit_job, job_pb2.SubmitJobRequest.FromString, job_pb2.Job.SerializeToString
        ),
        "SubmitJobs": grpc.unary_unary_rpc_method_handler(
            submit_jobs,
            job_pb2.SubmitJobsRequest.FromString,
            job_pb2.SubmitJobsResponse.SerializeToString,
        ),
    }
    generic = grpc.method_handlers_generic_handler("hatoba.v1.JobService", handlers)
    server.add_generic_rpc_handlers((generic,))


async def serve(data: Path, ready: Path, *, bare: bool) -> None:
    """Serve until SIGTERM; `ready` then says where."""
    tune_interpreter()
    config = Config()
    store = await open_store(data, lambda: round(time.time() * 1e6))
    traces = TraceStore(data / "traces.db", config.limits.kept_spans)
    try:
        authenticator = Authenticator(store, lambda: round(time.time() * 1e6))
        await authenticator.load()
        await ensure_token_files(authenticator, data)
        sampler = RateSampler(config.server.trace_full_below, config.server.trace_share)
        limits = CallLimits(config.limits.max_message_bytes, config.limits.max_unary_seconds)
        front = Front(
            authenticator,
            Tracer([traces], sampler=sampler),
            ServerMetrics(),
            Admission(Phase.SERVING),
            limits=limits,
        )
        server = grpc.aio.server(
            interceptors=[] if bare else [front],
            options=server_options(config.limits.max_message_bytes),
            maximum_concurrent_rpcs=config.limits.max_concurrent_calls,
        )
        _serve_jobs(server)
        warm((job_pb2.SubmitJobRequest, job_pb2.JobSpec))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        _announce(ready, port)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.stop(1.0)
    finally:
        await traces.close()
        await store.close()


def _announce(ready: Path, port: int) -> None:
    part = ready.with_suffix(".part")
    part.write_text(json.dumps({"grpc": f"127.0.0.1:{port}", "pid": os.getpid()}))
    part.replace(ready)


def main(arguments: list[str]) -> None:
    """Serve as the command line says."""
    configure_logging("warning")
    data, ready = Path(arguments[0]), Path(arguments[1])
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    asyncio.run(serve(data, ready, bare="bare" in arguments[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
