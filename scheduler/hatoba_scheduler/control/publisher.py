"""Makes a dataset version of the outputs of jobs that ask for it, once they have succeeded.

What is due stands in the store from the submit on, and a job makes one version of a dataset: a
server that is killed anywhere publishes at its next start what it had not, and nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from hatoba.artifacts.manifest import FILE
from hatoba.v1 import artifact_pb2, common_pb2, job_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.inherited import tasks_of
from hatoba_scheduler.control.items import Content, ItemReader, ItemWriter
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.sources import dataset_versions_of, named_inputs
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.datasets import ITEMS_FILE, NewDatasetVersion, Origins
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.records import Event, Job, ManifestRef, Task
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import (
    FailedPrecondition,
    HatobaError,
    InvalidArgument,
    NotFound,
    shown,
)
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.blobs import ChunkStore
from hatoba_scheduler.store.publications import Publication

AGAIN = 1.0
"""Seconds after which what could not be stored is tried again."""
SUMMARY_FILE = "summary.json"
_MOST_SUMMARY = 1024 * 1024
_MOST_ITEMS = 10**15
_TASKS_AT_ONCE = 500

log = structlog.get_logger(__name__)
Entry = artifact_pb2.ManifestEntry


class Unpublishable(Exception):
    """These outputs cannot become a dataset version; the message says why."""


@dataclass(slots=True)
class Tallied:
    """What tasks' summaries add up to."""

    tasks: int = 0
    total: int = 0
    done: int = 0
    errors: int = 0

    def add(self, task: int, told: object) -> None:
        """Count one task's summary. Raises Unpublishable for one that is none."""
        counts = [_count(told, name) for name in ("total", "done", "errors")]
        if None in counts:
            raise Unpublishable(f"{SUMMARY_FILE} of task {task} has no counts total, done, errors")
        total, done, errors = (count or 0 for count in counts)
        self.tasks += 1
        self.total += total
        self.done += done
        self.errors += errors

    @property
    def text(self) -> str:
        """`9,998 of 10,000, 2 errors`; empty when no task said anything."""
        word = "error" if self.errors == 1 else "errors"
        told = f"{self.done:,} of {self.total:,}, {self.errors:,} {word}"
        return told if self.tasks else ""


class _Outputs(NamedTuple):
    """What of a task's outputs matters here."""

    task: int
    items: Entry | None
    files: list[Entry]
    summary: Entry | None


@dataclass(slots=True)
class _Gathered:
    """The outputs of all tasks, in order."""

    items: list[Entry] = field(default_factory=list)
    files: dict[str, Entry] = field(default_factory=dict)
    tallied: Tallied = field(default_factory=Tallied)

    def add(self, outputs: _Outputs, folder: str) -> None:
        """Take in one task's. Raises Unpublishable."""
        if outputs.items is None:
            wanted = f"{folder}/{ITEMS_FILE}" if folder else ITEMS_FILE
            raise Unpublishable(f"task {outputs.task} left no {wanted}")
        self.items.append(outputs.items)
        for file in outputs.files:
            known = self.files.setdefault(file.path, file)
            if known.chunks != file.chunks:
                raise Unpublishable(
                    f"task {outputs.task} left another {shown(file.path)} than a task before it"
                )


class Publisher:
    """Publishes one job's outputs after the other."""

    def __init__(
        self, ledger: Ledger, store: Store, specs: SpecCache, blobs: ChunkStore, clock: Clock
    ) -> None:
        self._store = store
        self._specs = specs
        self._blobs = blobs
        self._clock = clock
        self._reader = ItemReader(blobs)
        self._expected: set[str] = set()
        self._todo: deque[str] = deque()
        self._wake = asyncio.Event()
        ledger.listen(self.on_commit)

    async def recover(self) -> None:
        """Take up what an earlier process did not come to."""
        due = await self._store.publications.due()
        jobs = await self._store.jobs_by_uid(due)
        for uid in due:
            if uid in jobs and not jobs[uid].state.terminal:
                self._expected.add(uid)
            else:
                self._todo.append(uid)
        self._wake.set()

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        for commit in commits:
            if commit.publishes:
                self._expected.add(commit.change.job.uid)
        if not self._expected:
            return
        for event in events:
            if event.job_terminal and event.job_uid in self._expected:
                self._expected.discard(event.job_uid)
                self._todo.append(event.job_uid)
                self._wake.set()

    async def run(self) -> None:
        """Publish what is due; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._todo:
                uid = self._todo.popleft()
                if not await self._publish(uid):
                    self._todo.append(uid)
                    await self._clock.sleep(AGAIN)

    async def _publish(self, uid: str) -> bool:
        """Carry one out; False when that has to be tried again."""
        try:
            job = await self._store.job(uid)
            publication = await self._publication(job) if job else Publication("", "")
            await self._store.publications.settle(uid, publication)
        except HatobaError as error:
            log.warning("publish.not_stored", job=uid, error=error.message)
            return False
        except Exception:
            # What one job left ends nobody else's work; the next start looks at it again.
            log.exception("publish.failed", job=uid)
            return True
        log.info("publish.settled", job=uid, published=publication.published)
        return True

    async def _publication(self, job: Job) -> Publication:
        if job.state is not JobState.SUCCEEDED:
            return Publication("", "")
        spec = (await self._specs.get([job.uid]))[job.uid]
        gathered = _Gathered()
        try:
            await self._gather(job, spec.publish, gathered)
            published = await self._version(job, spec, gathered)
        except Unpublishable as error:
            published = f"not published: {error}"
        except (InvalidArgument, FailedPrecondition, NotFound) as error:
            published = f"not published: {error.message}"
        return Publication(published, gathered.tallied.text)

    # -- what the tasks left --------------------------------------------------------------------

    async def _gather(self, job: Job, wanted: job_pb2.Publish, into: _Gathered) -> None:
        """Walk over all tasks' outputs; their summaries first, so that all are counted."""
        folder = wanted.folder.strip("/")
        problem: Unpublishable | None = None
        async for task in self._tasks(job):
            outputs = await self._outputs(task, folder)
            if outputs.summary is not None:
                into.tallied.add(task.index, await self._json(task.index, outputs.summary))
            try:
                into.add(outputs, folder)
            except Unpublishable as error:
                problem = problem or error
        if wanted.HasField("max_errors") and into.tallied.errors > wanted.max_errors:
            raise Unpublishable(
                f"{into.tallied.errors:,} items failed, and {wanted.max_errors:,} may; "
                "see the first of them in each task's summary.json"
            )
        if problem is not None:
            raise problem

    async def _tasks(self, job: Job) -> AsyncIterator[Task]:
        after = -1
        while some := await tasks_of(self._store, job, after, _TASKS_AT_ONCE):
            for _, task in some:
                yield task
            after = some[-1].task.index

    async def _outputs(self, task: Task, folder: str) -> _Outputs:
        items, summary = None, None
        files: list[Entry] = []
        if task.outputs is None:
            return _Outputs(task.index, None, files, None)
        prefix = f"{folder}/" if folder else ""
        async with aclosing(self._blobs.entries(task.outputs.digest)) as batches:
            async for entries in batches:
                for entry in entries:
                    if entry.path == f"{prefix}{ITEMS_FILE}":
                        items = entry
                    elif entry.path == SUMMARY_FILE:
                        summary = entry
                    elif entry.type == FILE and entry.path.startswith(prefix):
                        files.append(_moved(entry, prefix))
        return _Outputs(task.index, items, files, summary)

    async def _json(self, task: int, entry: Entry) -> Any:
        if entry.size > _MOST_SUMMARY:
            raise Unpublishable(f"{SUMMARY_FILE} of task {task} has {entry.size:,} bytes")
        data = b"".join([piece async for piece in self._pieces(entry)])
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Unpublishable(f"{SUMMARY_FILE} of task {task} is not JSON: {error}") from None

    async def _pieces(self, entry: Entry) -> AsyncIterator[bytes]:
        chunks = [chunk.sha256 for chunk in entry.chunks]
        async with aclosing(self._blobs.read(chunks)) as reads:
            async for pieces in reads:
                for piece in pieces:
                    yield piece.data

    # -- the version ----------------------------------------------------------------------------

    async def _version(self, job: Job, spec: job_pb2.JobSpec, gathered: _Gathered) -> str:
        items = await self._items(gathered.items)
        files = [gathered.files[path] for path in sorted(gathered.files)]
        manifest = await self._blobs.put_manifest(artifact_pb2.Manifest(entries=files))
        survey = await self._reader.survey(Content(manifest.digest, items.digest))
        new = NewDatasetVersion(
            project=job.project,
            dataset=spec.publish.dataset,
            manifest=_ref(manifest),
            items=_ref(items),
            item_count=survey.tally.items,
            create_time=round(self._clock.time() * 1e6),
            created_by=job.created_by,
            splits=survey.tally.splits,
            item_labels=survey.tally.labels,
            by_reference=survey.by_reference,
            origins=_origins(job, spec),
        )
        return (await self._store.datasets.create_version(new)).resource

    async def _items(self, files: Iterable[Entry]) -> common_pb2.ManifestRef:
        """All tasks' items as one file, in their order."""
        async with ItemWriter(self._blobs) as writer:
            for file in files:
                last = b"\n"
                async for piece in self._pieces(file):
                    await writer.write(piece)
                    last = piece[-1:]
                if last != b"\n":
                    await writer.write(b"\n")
            return await writer.finish()


def _origins(job: Job, spec: job_pb2.JobSpec) -> Origins:
    models = [name for name in named_inputs(spec) if "/models/" in name]
    return Origins(
        source=f"jobs/{job.name}",
        job=job_name(job.project, job.name),
        model_version=models[0] if models else "",
        made_from=tuple(dataset_versions_of(spec)),
    )


def _ref(stored: common_pb2.ManifestRef) -> ManifestRef:
    return ManifestRef(stored.digest, stored.total_bytes, stored.files)


def _moved(entry: Entry, prefix: str) -> Entry:
    """A file where it is in the version's tree."""
    moved = Entry()
    moved.CopyFrom(entry)
    moved.path = entry.path.removeprefix(prefix)
    return moved


def _count(told: object, name: str) -> int | None:
    value = told.get(name) if isinstance(told, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_ITEMS else None
