"""The synchronous client: the same calls, on an event loop of its own thread, so it works in
notebooks.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.batch import BatchOptions
from hatoba.code_versions import Code
from hatoba.datasets import Datasets
from hatoba.deployments import Deployments
from hatoba.devices import Devices
from hatoba.following import LogPiece, Resync, silent
from hatoba.frames import Metrics, table
from hatoba.hooks import Webhooks
from hatoba.models import Models
from hatoba.operations import Operations
from hatoba.options import SubmitOptions
from hatoba.queues import Queues
from hatoba.schedules import Schedules
from hatoba.v1 import common_pb2, job_pb2

T = TypeVar("T")


class Client:
    """A connection to one server; see AsyncClient for how it is found. `close` it, or use
    `with`.
    """

    def __init__(
        self,
        address: str = "",
        *,
        token_file: str = "",
        context: str = "",
        ca_file: str = "",
        project: str = "",
        notify: Callable[[str], None] = silent,
    ) -> None:
        self._client = AsyncClient(
            address,
            token_file=token_file,
            context=context,
            ca_file=ca_file,
            project=project,
            notify=notify,
        )
        self._loop = _LoopThread(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread; twice is the same as once."""
        self._loop.close()

    def submit(
        self,
        command: Sequence[str] | str = (),
        *,
        script: str | Path = "",
        request_id: str = "",
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """See AsyncClient.submit."""
        job = self._client.submit(command, script=script, request_id=request_id, **options)
        return Job(self._loop, self._loop.run(job))

    def predict_batch(
        self, model: str, dataset: str, *, request_id: str = "", **options: Unpack[BatchOptions]
    ) -> Job:
        """See AsyncClient.predict_batch."""
        job = self._client.predict_batch(model, dataset, request_id=request_id, **options)
        return Job(self._loop, self._loop.run(job))

    def plan(
        self,
        command: Sequence[str] | str = (),
        *,
        script: str | Path = "",
        **options: Unpack[SubmitOptions],
    ) -> job_pb2.Explanation:
        """See AsyncClient.plan."""
        return self._loop.run(self._client.plan(command, script=script, **options))

    def cancel(
        self, *jobs: str, filter: str = "", queue: str = "", indices: str = "", reason: str = ""
    ) -> list[job_pb2.CancelResult]:
        """See AsyncClient.cancel."""
        cancel = self._client.cancel(
            *jobs, filter=filter, queue=queue, indices=indices, reason=reason
        )
        return self._loop.run(cancel)

    def job(self, name: str) -> Job:
        """A job by name (`digits-42`) or uid."""
        return Job(self._loop, self._loop.run(self._client.job(name)))

    def jobs(self, filter: str = "", *, limit: int = 100) -> list[Job]:
        """The newest jobs that match, at most `limit`."""
        found = self._loop.run(self._client.jobs(filter, limit=limit))
        return [Job(self._loop, AsyncJob(self._client, record)) for record in found]

    @property
    def datasets(self) -> Datasets:
        """Datasets of the project."""
        return Datasets(self._loop, self._client.datasets)

    @property
    def deployments(self) -> Deployments:
        """Deployments of the project."""
        return Deployments(self._loop, self._client.deployments)

    @property
    def devices(self) -> Devices:
        """Devices of the installation."""
        return Devices(self._loop, self._client.devices)

    @property
    def queues(self) -> Queues:
        """Queues of the project."""
        return Queues(self._loop, self._client.queues)

    @property
    def webhooks(self) -> Webhooks:
        """Events of the project that are posted to other systems."""
        return Webhooks(self._loop, self._client.webhooks)

    @property
    def operations(self) -> Operations:
        """What operators do with the installation."""
        return Operations(self._loop, self._client.operations)

    @property
    def schedules(self) -> Schedules:
        """Jobs of the project that are submitted by the clock."""
        return Schedules(self._loop, self._client.schedules)

    @property
    def models(self) -> Models:
        """Models of the project."""
        return Models(self._loop, self._client.models)

    @property
    def code(self) -> Code:
        """Code of the project, as jobs ran it."""
        return Code(self._loop, self._client.code)

    def events(
        self,
        *jobs: str,
        cursor: str = "",
        jobs_only: bool = False,
        filter: str = "",
        reasons: Sequence[str] = (),
    ) -> Generator[common_pb2.Event | Resync, None, None]:
        """See AsyncClient.events."""
        return self._loop.iterate(
            self._client.events(
                *jobs, cursor=cursor, jobs_only=jobs_only, filter=filter, reasons=reasons
            )
        )


class Job:
    """A submitted job."""

    def __init__(self, loop: _LoopThread, job: AsyncJob) -> None:
        self._loop = loop
        self._job = job

    def __repr__(self) -> str:
        return f"<hatoba.Job {self.name} {self._job.state}>"

    def _repr_html_(self) -> str:
        """Name and state as last read, for notebooks."""
        return table(("job", "state"), [(self.name, self._job.state)])

    @property
    def name(self) -> str:
        """NAME-N."""
        return self._job.name

    @property
    def record(self) -> job_pb2.Job:
        """Everything the server knows about it, read now."""
        return self._loop.run(self._job.refresh())

    @property
    def state(self) -> str:
        """Its state now, for example `RUNNING`."""
        self._loop.run(self._job.refresh())
        return self._job.state

    def wait(self, timeout: float | None = None) -> job_pb2.Job:
        """See AsyncJob.wait. Ctrl-C ends the waiting, not the job."""
        return self._loop.run(self._job.wait(timeout))

    def logs(
        self,
        *,
        follow: bool = False,
        stream: str = "",
        index: int = 0,
        attempt: int = 0,
        tail: int = 0,
    ) -> Generator[LogPiece, None, None]:
        """See AsyncJob.logs."""
        return self._loop.iterate(
            self._job.logs(follow=follow, stream=stream, index=index, attempt=attempt, tail=tail)
        )

    def metrics(self, *keys: str, index: int | None = None) -> Metrics:
        """See AsyncJob.metrics; in a notebook it is a table, and `.to_pandas()` a data frame."""
        return self._loop.run(self._job.metrics(*keys, index=index))

    def cancel(self, reason: str = "", *, indices: str = "") -> job_pb2.CancelResult:
        """See AsyncJob.cancel."""
        return self._loop.run(self._job.cancel(reason, indices=indices))

    def update(
        self, *, priority: int | None = None, queue: str | None = None, etag: str = ""
    ) -> job_pb2.Job:
        """See AsyncClient.update."""
        return self._loop.run(self._job.update(priority=priority, queue=queue, etag=etag))

    def hold(self) -> job_pb2.Job:
        """Keep back what has not started of it."""
        return self._loop.run(self._job.hold())

    def release(self) -> job_pb2.Job:
        """Let it go, if it is held."""
        return self._loop.run(self._job.release())

    def outputs(self, directory: str | Path, *, index: int | None = None) -> Path:
        """See AsyncJob.outputs."""
        return self._loop.run(self._job.outputs(directory, index=index))

    def rerun(
        self,
        *,
        params: Mapping[str, float | bool | str] | None = None,
        env: Mapping[str, str] | None = None,
        from_checkpoint: bool = False,
        failed_only: bool = False,
        overrides: job_pb2.JobSpec | None = None,
        override_fields: Sequence[str] | None = None,
    ) -> Job:
        """See AsyncJob.rerun."""
        job = self._job.rerun(
            params=params,
            env=env,
            from_checkpoint=from_checkpoint,
            failed_only=failed_only,
            overrides=overrides,
            override_fields=override_fields,
        )
        return Job(self._loop, self._loop.run(job))

    def explain(self) -> job_pb2.Explanation:
        """See AsyncJob.explain."""
        return self._loop.run(self._job.explain())


def submit(
    command: Sequence[str] | str = (), *, script: str | Path = "", **options: Unpack[SubmitOptions]
) -> Job:
    """Submit to the server that is found without saying anything; see AsyncClient.submit."""
    return _default_client().submit(command, script=script, **options)


@lru_cache(maxsize=1)
def _default_client() -> Client:
    client = Client()
    atexit.register(client.close)
    return client


class _LoopThread:
    """An event loop on a thread, with a client open in it from start to close."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._serve, name="hatoba-client", daemon=True)
        self._thread.start()
        self._loop = self._ready.result()

    def _serve(self) -> None:
        try:
            asyncio.run(self._open())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the loop gets it
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _open(self) -> None:
        self._stop = asyncio.Event()
        async with self._client:
            self._ready.set_result(asyncio.get_running_loop())
            await self._stop.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; an interrupt of the waiting thread cancels it."""
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """An asynchronous iterator's items, closed when the reader leaves."""

        async def advance() -> list[T]:
            return [item] if (item := await anext(items, None)) is not None else []

        try:
            while item := self.run(advance()):
                yield item[0]
        finally:
            self.run(items.aclose())

    def close(self) -> None:
        """Close the client and end the thread."""
        if self._thread.is_alive() and self._stop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
