"""`hatoba jobs submit`: job files to jobs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from hatoba import packing
from hatoba.aio import SUBMIT_SECONDS, AsyncClient, batches, short_name
from hatoba.cli.exits import Exit
from hatoba.cli.output import emit
from hatoba.cli.session import with_client
from hatoba.errors import HatobaError
from hatoba.jobfile import JobDocument, read_job_file, read_jobs
from hatoba.options import ParamValue, set_param
from hatoba.v1 import job_pb2


def read_files(
    files: Sequence[str], params: Mapping[str, ParamValue], code: str | None, *, no_code: bool
) -> list[JobDocument]:
    """Every job of every file, with parameters and code as the command line says."""
    documents = [document for name in files for document in _read(name)]
    for document in documents:
        for name, value in params.items():
            set_param(document.parcel.spec, name, value)
        _set_code(document, code, no_code)
    return documents


def _read(name: str) -> list[JobDocument]:
    if name == "-":
        return read_jobs(sys.stdin.read(), source="stdin", directory=Path())
    return read_job_file(Path(name))


def _set_code(document: JobDocument, code: str | None, no_code: bool) -> None:
    """The directory to bring along: as said, as the file says, else the one that holds the file."""
    parcel = document.parcel
    if no_code or parcel.spec.code.digest:
        parcel.code = None
    elif code is not None:
        parcel.code = Path(code)
    elif parcel.code is None:
        parcel.code = Path(document.source).parent if document.source != "stdin" else Path()


@dataclass
class Submission:
    """Jobs to submit, and how to write what became of them."""

    documents: list[JobDocument]
    output: str
    check: bool = False

    def send(self) -> Exit:
        """Submit (or only check) every job; one that is refused does not hold the others up."""
        if self.check:
            return with_client(self._check_all)
        if len(self.documents) == 1:
            return with_client(self._send_one)
        return with_client(self._send_all)

    def follow(self) -> Exit:
        """Submit the one job and follow it."""
        from hatoba.cli.run import submit_and_follow

        try:
            return submit_and_follow(self.documents[0].parcel, detach=False)
        except HatobaError as error:
            raise self.documents[0].explain(error) from None

    async def _check_all(self, client: AsyncClient) -> Exit:
        for document in self.documents:
            try:
                await client.check(document.parcel)
            except HatobaError as error:
                raise document.explain(error) from None
        click.echo(f"{len(self.documents)} good, nothing submitted", err=True)
        return Exit.OK

    async def _send_one(self, client: AsyncClient) -> Exit:
        document = self.documents[0]
        try:
            job = await client.submit_parcel(document.parcel)
        except HatobaError as error:
            raise document.explain(error) from None
        emit(job.record, self.output, lambda: click.echo(job.name))
        return Exit.OK

    async def _send_all(self, client: AsyncClient) -> Exit:
        items = [await self._item(client, document) for document in self.documents]
        results: list[job_pb2.SubmitJobsResult] = []
        with client.transport.tracer.span("hatoba submit"):
            for part in batches(items):
                request = job_pb2.SubmitJobsRequest(project=client.project, items=part)
                reply = await client.call(
                    request, job_pb2.SubmitJobsResponse, timeout=SUBMIT_SECONDS
                )
                results.extend(reply.results)
        client.transport.flush_spans()
        emit(job_pb2.SubmitJobsResponse(results=results), self.output, lambda: _names(results))
        return self._tell_refused(results)

    async def _item(self, client: AsyncClient, document: JobDocument) -> job_pb2.SubmitJobsItem:
        await packing.bring(client, document.parcel)
        return job_pb2.SubmitJobsItem(spec=document.parcel.spec, request_id=uuid.uuid4().hex)

    def _tell_refused(self, results: list[job_pb2.SubmitJobsResult]) -> Exit:
        refused = [pair for pair in zip(self.documents, results, strict=True) if pair[1].code]
        for document, result in refused:
            click.echo(
                f"{document.source}: {document.parcel.spec.name}: {result.message}", err=True
            )
        return Exit.FAILURE if refused else Exit.OK


def _names(results: list[job_pb2.SubmitJobsResult]) -> None:
    for result in results:
        if result.name:
            click.echo(short_name(result.name))
