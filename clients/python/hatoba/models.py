"""Models: register, look at, point aliases, compare, download; who moves what; lineage."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from hatoba import golden, handlers, packing
from hatoba.artifacts.scan import Selection
from hatoba.errors import DeadlineExceeded, InvalidSpec
from hatoba.options import ParamValue, default_interpreter, read_requirements, set_param
from hatoba.v1 import common_pb2, job_pb2, model_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

REGISTER_SECONDS = 60.0
LOOK_SECONDS = (0.05, 0.1, 0.2, 0.5)
"""Between looks at a version whose check runs; the last one from then on."""
REGISTERING = model_pb2.MODEL_STATE_REGISTERING
READY = model_pb2.MODEL_STATE_READY
_PAGE = 1_000


class RegisterOptions(TypedDict, total=False):
    """How to register. Every one may be left out.

    `handler` is `MODULE:CLASS`, importable from the directory `code` (left out: from the model's
    own). `example` is an input as a request would have it: a file (Path), bytes, or anything that
    JSON can carry; a handler needs one. `golden` are inputs whose answers are known, which every
    replica has to answer so: a file (Path) or a list of `{"input", "expected", "tolerance"}`, see
    `hatoba.golden`. `requirements` is a file in pip's format, `python` is a
    version or path, `image` a container image; left out: this interpreter. `metrics` and `params`
    tell how good it is and what it was made with, `job`, `datasets`, `code_version` and `parent`
    where it comes from.
    """

    handler: str
    code: str | Path
    example: Any
    golden: Any
    requirements: str | Path
    python: str
    image: str
    max_batch: int
    batch_wait_ms: float
    metrics: Mapping[str, float]
    params: Mapping[str, ParamValue]
    description: str
    labels: Mapping[str, str]
    job: str
    parent: str
    datasets: Sequence[str]
    code_version: str


class AsyncModels:
    """Models of a client's project. Versions are `digits:7`, `digits@production` or, for the newest
    that is READY, `digits`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def register(
        self, name: str, path: str | Path, *, wait: bool = True, **options: Unpack[RegisterOptions]
    ) -> model_pb2.ModelVersion:
        """Make the next version of a model out of a directory or file.

        With a handler a job imports it and has it answer example and golden cases; with `wait` this
        returns once it has ended, and the version is READY or FAILED with its `cause`. Raises
        InvalidSpec for what cannot be sent.
        """
        request = model_pb2.RegisterModelRequest(
            project=self._client.project, model=name, request_id=uuid.uuid4().hex
        )
        await asyncio.to_thread(_describe, request, options)
        cases = await asyncio.to_thread(golden_of, options.get("golden"))
        if cases:
            request.serving.golden = len(golden.parse(cases))
        request.manifest.CopyFrom(await self._send(Path(path), cases))
        if "code" in options:
            code = await packing.send_tree(
                self._client, Path(options["code"]), Selection.CODE, "the code"
            )
            request.serving.code.CopyFrom(code)
        made = await self._client.call(request, model_pb2.ModelVersion, timeout=REGISTER_SECONDS)
        return await self.checked(made) if wait else made

    async def _send(self, path: Path, cases: bytes) -> common_pb2.ManifestRef:
        stack = ExitStack()
        try:
            directory = await asyncio.to_thread(stack.enter_context, as_directory(path))
            added = await asyncio.to_thread(stack.enter_context, _golden_file(directory, cases))
            return await packing.send_tree(
                self._client, directory, Selection.EVERYTHING, "the model", added
            )
        finally:
            await asyncio.to_thread(stack.close)

    async def checked(
        self, version: model_pb2.ModelVersion, timeout: float | None = None
    ) -> model_pb2.ModelVersion:
        """A version once its check has ended. Raises DeadlineExceeded after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                looks = 0
                while version.state == REGISTERING:
                    await self._client.transport.pause(LOOK_SECONDS[min(looks, 3)])
                    version = await self.get(version.name)
                    looks += 1
                return version
        except TimeoutError:
            raise DeadlineExceeded(
                f"the check of {short_name(version.name)} has not ended after {timeout} s",
                remedy=f"look at it: `hatoba logs {version.check_job.rpartition('/')[2]}`",
            ) from None

    async def get(self, name: str) -> model_pb2.ModelVersion:
        """One version."""
        request = model_pb2.GetModelVersionRequest(project=self._client.project, name=name)
        return await self._client.call(request, model_pb2.ModelVersion)

    async def model(self, name: str) -> model_pb2.Model:
        """A model with its aliases."""
        request = model_pb2.GetModelRequest(project=self._client.project, name=name)
        return await self._client.call(request, model_pb2.Model)

    async def list(self) -> Sequence[model_pb2.Model]:
        """All models by name."""
        request = model_pb2.ListModelsRequest(project=self._client.project, page_size=_PAGE)
        found: list[model_pb2.Model] = []
        while True:
            page = await self._client.call(request, model_pb2.ListModelsResponse)
            found.extend(page.models)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def versions(self, name: str, *, limit: int = 100) -> Sequence[model_pb2.ModelVersion]:
        """The newest versions of a model, at most `limit`."""
        request = model_pb2.ListModelVersionsRequest(project=self._client.project, model=name)
        found: list[model_pb2.ModelVersion] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), _PAGE)
            page = await self._client.call(request, model_pb2.ListModelVersionsResponse)
            found.extend(page.versions)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    async def record_images(
        self, name: str, images: Sequence[model_pb2.ModelImage]
    ) -> model_pb2.ModelVersion:
        """Keep which images were built of a version; of an architecture the newest one stays."""
        request = model_pb2.RecordImagesRequest(
            project=self._client.project, name=name, images=images, request_id=uuid.uuid4().hex
        )
        return await self._client.call(request, model_pb2.ModelVersion)

    async def set_alias(
        self, name: str, alias: str, version: int, *, expected: int | None = None, reason: str = ""
    ) -> model_pb2.SetAliasResponse:
        """Point an alias to a version, if it points to `expected` (0: nowhere, None: wherever).

        A protected one does not move: the reply's move is PENDING until somebody else approves it.
        """
        request = model_pb2.SetAliasRequest(
            project=self._client.project,
            model=name,
            alias=alias,
            version=version,
            expected=expected,
            reason=reason,
            request_id=uuid.uuid4().hex,
        )
        return await self._client.call(request, model_pb2.SetAliasResponse)

    async def delete_alias(
        self, name: str, alias: str, *, expected: int | None = None
    ) -> model_pb2.Model:
        """Take an alias away; a protected one stays until somebody else approves it."""
        request = model_pb2.DeleteAliasRequest(
            project=self._client.project,
            model=name,
            alias=alias,
            expected=expected,
            request_id=uuid.uuid4().hex,
        )
        return await self._client.call(request, model_pb2.Model)

    async def protect(self, name: str, *aliases: str) -> model_pb2.Model:
        """Say which aliases are protected from now on, all of them."""
        request = model_pb2.UpdateModelRequest(
            project=self._client.project,
            name=name,
            protected_aliases=aliases,
            request_id=uuid.uuid4().hex,
        )
        return await self._client.call(request, model_pb2.Model)

    async def moves(
        self, name: str = "", *, pending: bool = False, limit: int = 100
    ) -> Sequence[model_pb2.AliasMove]:
        """The newest moves of a model's aliases, or of all models'."""
        request = model_pb2.ListAliasMovesRequest(
            project=self._client.project, model=name, pending_only=pending, page_size=limit
        )
        return list((await self._client.call(request, model_pb2.ListAliasMovesResponse)).moves)

    async def decide(self, move: str, approve: bool, comment: str = "") -> model_pb2.AliasMove:
        """Approve or reject a move that waits, by its resource name."""
        request = model_pb2.DecideAliasMoveRequest(
            name=move, approve=approve, comment=comment, request_id=uuid.uuid4().hex
        )
        return await self._client.call(request, model_pb2.AliasMove)

    async def lineage(self, name: str, depth: int = 0) -> model_pb2.Lineage:
        """Where a model, dataset, code, job or deployment comes from and what became of it."""
        request = model_pb2.GetLineageRequest(project=self._client.project, name=name, depth=depth)
        return await self._client.call(request, model_pb2.Lineage)

    async def download(self, name: str, directory: str | Path) -> model_pb2.ModelVersion:
        """Fetch a version's files into a directory, which must be absent or empty."""
        version = await self.get(name)
        await packing.fetch(self._client, version.manifest, Path(directory))
        return version

    async def delete(self, name: str) -> model_pb2.ModelVersion:
        """Remove a version, named by its number, that nothing uses."""
        request = model_pb2.DeleteModelVersionRequest(
            project=self._client.project, name=name, request_id=uuid.uuid4().hex
        )
        return await self._client.call(request, model_pb2.ModelVersion)


class Models:
    """Models, for callers without an event loop; see AsyncModels."""

    def __init__(self, loop: _LoopThread, models: AsyncModels) -> None:
        self._loop = loop
        self._models = models

    def register(
        self, name: str, path: str | Path, *, wait: bool = True, **options: Unpack[RegisterOptions]
    ) -> model_pb2.ModelVersion:
        """See AsyncModels.register."""
        return self._loop.run(self._models.register(name, path, wait=wait, **options))

    def get(self, name: str) -> model_pb2.ModelVersion:
        """See AsyncModels.get."""
        return self._loop.run(self._models.get(name))

    def model(self, name: str) -> model_pb2.Model:
        """See AsyncModels.model."""
        return self._loop.run(self._models.model(name))

    def list(self) -> Sequence[model_pb2.Model]:
        """See AsyncModels.list."""
        return self._loop.run(self._models.list())

    def versions(self, name: str, *, limit: int = 100) -> Sequence[model_pb2.ModelVersion]:
        """See AsyncModels.versions."""
        return self._loop.run(self._models.versions(name, limit=limit))

    def record_images(
        self, name: str, images: Sequence[model_pb2.ModelImage]
    ) -> model_pb2.ModelVersion:
        """See AsyncModels.record_images."""
        return self._loop.run(self._models.record_images(name, images))

    def set_alias(
        self, name: str, alias: str, version: int, *, expected: int | None = None, reason: str = ""
    ) -> model_pb2.SetAliasResponse:
        """See AsyncModels.set_alias."""
        moved = self._models.set_alias(name, alias, version, expected=expected, reason=reason)
        return self._loop.run(moved)

    def delete_alias(
        self, name: str, alias: str, *, expected: int | None = None
    ) -> model_pb2.Model:
        """See AsyncModels.delete_alias."""
        return self._loop.run(self._models.delete_alias(name, alias, expected=expected))

    def protect(self, name: str, *aliases: str) -> model_pb2.Model:
        """See AsyncModels.protect."""
        return self._loop.run(self._models.protect(name, *aliases))

    def moves(
        self, name: str = "", *, pending: bool = False, limit: int = 100
    ) -> Sequence[model_pb2.AliasMove]:
        """See AsyncModels.moves."""
        return self._loop.run(self._models.moves(name, pending=pending, limit=limit))

    def decide(self, move: str, approve: bool, comment: str = "") -> model_pb2.AliasMove:
        """See AsyncModels.decide."""
        return self._loop.run(self._models.decide(move, approve, comment))

    def lineage(self, name: str, depth: int = 0) -> model_pb2.Lineage:
        """See AsyncModels.lineage."""
        return self._loop.run(self._models.lineage(name, depth))

    def download(self, name: str, directory: str | Path) -> model_pb2.ModelVersion:
        """See AsyncModels.download."""
        return self._loop.run(self._models.download(name, directory))

    def delete(self, name: str) -> model_pb2.ModelVersion:
        """See AsyncModels.delete."""
        return self._loop.run(self._models.delete(name))


def _describe(request: model_pb2.RegisterModelRequest, options: RegisterOptions) -> None:
    request.description = options.get("description", "")
    request.labels.update(options.get("labels", {}))
    request.metrics.update(options.get("metrics", {}))
    params = job_pb2.JobSpec()
    for name, value in options.get("params", {}).items():
        set_param(params, name, value)
        request.params[name].CopyFrom(params.params[name])
    request.job, request.parent = options.get("job", ""), options.get("parent", "")
    request.datasets.extend(options.get("datasets", ()))
    request.code_version = options.get("code_version", "")
    if options.get("handler"):
        _set_serving(request.serving, options)
    elif {"code", "example", "golden"} & options.keys():
        raise InvalidSpec(
            "code, example and golden are for a handler",
            remedy="say which class answers: handler=M:C",
        )


def _set_serving(serving: model_pb2.Serving, options: RegisterOptions) -> None:
    serving.handler = options["handler"]
    serving.max_batch = options.get("max_batch", 0)
    serving.batch_wait_ms = options.get("batch_wait_ms", 0.0)
    spec = job_pb2.JobSpec()
    spec.environment.python = options.get("python", "")
    spec.environment.image = options.get("image", "")
    if "requirements" in options:
        spec.environment.requirements = read_requirements(Path(options["requirements"]))
    default_interpreter(spec)
    serving.environment.CopyFrom(spec.environment)
    if "example" in options:
        payload = example_of(options["example"])
        serving.example.data, serving.example.media_type = payload


def golden_of(cases: Any) -> bytes:
    """Golden cases as they are kept; nothing of None. Raises InvalidSpec."""
    try:
        return golden.content_of(cases) if cases is not None else b""
    except golden.GoldenRefused as error:
        raise InvalidSpec(str(error)) from None


@contextmanager
def _golden_file(directory: Path, cases: bytes) -> Generator[Path | None, None, None]:
    """A file to be sent with a model: its golden cases; None where it has none or that very file.
    Raises InvalidSpec."""
    try:
        golden.refuse_another(directory, cases)
    except golden.GoldenRefused as error:
        raise InvalidSpec(str(error)) from None
    if not cases or (directory / golden.FILE).exists():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="hatoba-model-") as made:
        path = Path(made, golden.FILE)
        path.write_bytes(cases)
        # The same tree whatever the umask.
        path.chmod(0o644)
        yield path


def example_of(example: Any) -> handlers.Payload:
    """An example as it is sent: a file's bytes with what its name says it is, else as a request
    would have it. Raises InvalidSpec."""
    if isinstance(example, os.PathLike):
        path = Path(example)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidSpec(f"the example {path} cannot be read: {error.strerror}") from None
        return handlers.Payload(data, mimetypes.guess_type(path.name)[0] or handlers.BYTES)
    try:
        return handlers.payload_of(example)
    except handlers.HandlerError as error:
        raise InvalidSpec(str(error)) from None


@contextmanager
def as_directory(path: Path) -> Generator[Path, None, None]:
    """A directory as it is, or a new one with a file alone in it. Raises InvalidSpec."""
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise InvalidSpec(f"there is no file or directory {path}")
    with tempfile.TemporaryDirectory(prefix="hatoba-model-") as directory:
        shutil.copy2(path, directory)
        yield Path(directory)


def short_name(name: str) -> str:
    """`digits:7` for a version's resource name; any other's last part, with its kind in front where
    that is not plain."""
    parts = name.split("/")
    if len(parts) == 6 and parts[4] == "versions":
        prefix = "" if parts[2] == "models" else f"{parts[2]}/"
        return f"{prefix}{parts[3]}:{parts[5]}"
    return "/".join(parts[2:]) if len(parts) > 3 and parts[2] != "models" else parts[-1]


def state_word(state: model_pb2.ModelState.ValueType) -> str:
    """A state without its prefix."""
    return model_pb2.ModelState.Name(state).removeprefix("MODEL_STATE_")
