"""What a job sees of Hatoba while it runs. Standard library only, and never in the job's way.

Everything goes through files in the attempt's directory: this module appends lines to a spool and
the worker reads them. Server and worker may be away for as long as they like. Outside Hatoba the
same calls work on the current directory, so a script runs unchanged on a laptop.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

# One line is one write, so that lines of several processes never mix; the worker reads no longer
# ones.
MAX_LINE_BYTES = 64 * 1024
STEP_DIRECTORY = re.compile(r"^step-(\d+)$")
LOCAL_CHECKPOINTS = Path(".hatoba") / "checkpoints"
LOCAL_OUTPUTS = Path("outputs")
GAVE_WAY = 75
"""Exit code of a job that ends because it was asked to (EX_TEMPFAIL)."""


@lru_cache(maxsize=1)
def current_job() -> JobContext:
    """The job this process belongs to; outside Hatoba one that stands on the current directory."""
    return JobContext.from_environment(os.environ)


@dataclass(frozen=True)
class GangPlace:
    """This process among the members that run together: `addresses` are `host:port` of all, by
    rank; at each a port was kept free. `generation` counts how often the whole gang began.
    """

    rank: int
    size: int
    generation: int
    addresses: tuple[str, ...]

    @property
    def leader(self) -> str:
        """`host:port` of rank 0, where the others meet it."""
        return self.addresses[0]


@dataclass
class JobContext:
    """Parameters, metrics, progress, checkpoints, inputs and outputs of the running job.

    No method raises because something of Hatoba is away or a disk is full: it says so once on
    stderr and the job goes on. `checkpoint` is the exception where the caller's own block raises.
    """

    job: str = ""
    attempt: int = 0
    index: int = 0
    count: int = 1
    directory: Path | None = None
    spool: Path | None = None
    params_file: Path | None = None
    inputs_dir: Path = Path("inputs")
    outputs_dir: Path = LOCAL_OUTPUTS
    checkpoints_dir: Path = LOCAL_CHECKPOINTS
    restore: Path | None = None
    gang: GangPlace | None = None
    """Its place among the members, when the job has replicas."""
    _warned: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> JobContext:
        """Read the `HATOBA_*` variables of an attempt; without them, the local defaults."""
        if "HATOBA_ATTEMPT" not in environ:
            return cls()
        directory = Path(environ.get("HATOBA_DIR", "."))
        return cls(
            job=environ.get("HATOBA_JOB", ""),
            attempt=_number(environ.get("HATOBA_ATTEMPT_NUMBER"), 1),
            index=_number(environ.get("HATOBA_INDEX"), 0),
            count=_number(environ.get("HATOBA_TASK_COUNT"), 1),
            directory=directory,
            spool=Path(environ.get("HATOBA_SPOOL", directory / "spool.jsonl")),
            params_file=_path(environ, "HATOBA_PARAMS"),
            inputs_dir=Path(environ.get("HATOBA_INPUTS", directory / "inputs")),
            outputs_dir=Path(environ.get("HATOBA_OUTPUTS", directory / "outputs")),
            checkpoints_dir=Path(environ.get("HATOBA_CHECKPOINTS", directory / "checkpoints")),
            restore=_restored(environ),
            gang=_gang(environ),
        )

    @property
    def inside(self) -> bool:
        """True when Hatoba runs this process."""
        return self.spool is not None

    @cached_property
    def params(self) -> dict[str, Any]:
        """The job's parameters; empty outside Hatoba, so read them as `params.get(name,
        default)`.
        """
        if self.params_file is None:
            return {}
        try:
            text = self.params_file.read_text(encoding="utf-8")
            found = json.loads(text, parse_float=_whole_or_float)
        except (OSError, ValueError) as error:
            self._warn("params", f"parameters cannot be read: {error}")
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """The input trees by name; empty when the job has none."""
        try:
            return {path.name: path for path in sorted(self.inputs_dir.iterdir())}
        except OSError:
            return {}

    def items(self, name: str) -> Iterator[dict[str, Any]]:
        """The items of an input, in order: `id`, `path`, `attributes`, `media_type`. Of a tree
        without items, its files.
        """
        from hatoba import streams_in

        return streams_in.items_of(self.directory, self.inputs_dir, name)

    def stream(self, name: str) -> Iterator[tuple[Path | None, dict[str, Any]]]:
        """(path, item) of each item of an input, in order; the path is None without a file.

        With mode stream the files come while the job runs: each may be used until the next is asked
        for, and all of it can be read once. With the other modes all is there. Raises InputFailed
        when the input cannot be brought in.
        """
        from hatoba import streams_in

        return streams_in.streamed(self.directory, self.inputs_dir, name)

    @cached_property
    def outputs(self) -> Path:
        """The directory whose content is kept when the job succeeds. It exists when this
        returns.
        """
        return self._made(self.outputs_dir)

    @property
    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint to go on from, or None at a first start."""
        return self._newest_checkpoint() or self.restore

    @property
    def should_stop(self) -> bool:
        """True once the job was asked to stop; save what matters and return within the grace."""
        return self.directory is not None and (self.directory / "stop").exists()

    @property
    def checkpoint_requested(self) -> bool:
        """True once the job is to give way to others: save a checkpoint now, and call `give_way`.

        Looks at one file, so it may be asked in every step. Whoever does not look is stopped after
        a while, as ever, and goes on from its newest checkpoint.
        """
        return self.directory is not None and (self.directory / "save").exists()

    @property
    def seconds_to_save(self) -> float:
        """Until the stop, once `checkpoint_requested`; infinite before."""
        if self.directory is None:
            return math.inf
        try:
            return max(0.0, float((self.directory / "save").read_text()) - time.time())
        except (OSError, ValueError):
            return math.inf

    def give_way(self) -> None:
        """End this process, to go on later from the newest checkpoint; does nothing unless asked.

        It raises SystemExit with code 75. A job that exits with 0 has succeeded, whatever it was
        asked for.
        """
        if self.checkpoint_requested or self.should_stop:
            raise SystemExit(GAVE_WAY)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values at a step of your own counting (epochs, batches). NaN and infinities are
        kept.

        The same key at the same step again replaces the value.
        """
        values = {str(key): _value(value) for key, value in metrics.items()}
        if self.inside:
            self._append({"t": time.time(), "metrics": values, "step": int(step)})
            return
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        self._say(f"step {step}: {shown}")

    def progress(self, done: float, total: float = 0, message: str = "") -> None:
        """Say how far the job is, in units of your own; `total` 0 means not known."""
        if not self.inside:
            return
        told = {"done": _value(done), "total": _value(total), "message": str(message)[:1024]}
        self._append({"t": time.time(), "progress": told})

    def input(self, name: str) -> Path:
        """Where an input lies; raises FileNotFoundError, which names those that there are."""
        path = self.inputs_dir / name
        if not path.exists():
            there = ", ".join(self.inputs) or "none"
            raise FileNotFoundError(f"there is no input {name!r} in {self.inputs_dir}: {there}")
        return path

    def log_model(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        handler: str = "",
        example: Any = None,
        golden: Any = None,
        metrics: Mapping[str, float] | None = None,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        parent: str = "",
        code: str | os.PathLike[str] | None = None,
        max_batch: int = 0,
        batch_wait_ms: float = 0.0,
    ) -> None:
        """Make a model version of a file or directory, once the job has succeeded.

        `handler`, `MODULE:CLASS` in `code` (the working directory), serves it. It is imported here
        and now and has to answer `example`: JSON, bytes, or `(bytes, media type)`; and `golden` as
        expected, a file (Path) or a list of `{"input", "expected", "tolerance"}`, as each of its
        servers has to (`hatoba.golden`). `parent` is the version it was made from (`digits:6`). A
        server asks for up to `max_batch` answers at once, for which the first request waits
        `batch_wait_ms` at most.

        Unlike the other methods it raises: ValueError for what cannot be a model, HandlerNotFound,
        HandlerFailed or ExampleRefused (`hatoba.handlers`) for one that could not be served,
        GoldenRefused for golden cases that are none or answered otherwise, and OSError when it
        cannot be kept. Outside Hatoba it checks the same, and keeps nothing.
        """
        from hatoba import logged_models

        model = logged_models.LoggedModel(
            name=name,
            path=Path(path),
            handler=handler,
            example=example,
            golden=golden,
            metrics=metrics or {},
            description=description,
            labels=labels or {},
            parent=parent,
            code=None if code is None else Path(code),
            max_batch=max_batch,
            batch_wait_ms=batch_wait_ms,
        )
        examined = logged_models.examine(model)
        if self.directory is None:
            self._say(f"model {name}: it could be served; outside Hatoba it is not kept")
            return
        record = logged_models.record(model, examined)
        size = len(_line({"t": time.time(), "model": record}))
        if size > MAX_LINE_BYTES:
            raise ValueError(
                f"what is said of model {name!r} has {size:,} bytes and may have "
                f"{MAX_LINE_BYTES:,}: shorten metrics, labels or description"
            )
        record["number"] = logged_models.keep(model, examined, self.directory)
        self._write(_line({"t": time.time(), "model": record}))

    @contextmanager
    def checkpoint(self, step: int, metrics: Mapping[str, float] | None = None) -> Iterator[Path]:
        """Give a fresh directory to save into; it becomes the checkpoint of `step` when the block
        ends well.

        A block that raises leaves no checkpoint, and the error goes on to the caller. A retried job
        finds the newest one as `latest_checkpoint`.
        """
        partial = self._fresh(self.checkpoints_dir / f".tmp-{int(step)}-{os.getpid()}")
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if self._publish(partial, int(step)):
            self._announce(int(step), metrics or {})

    def _fresh(self, partial: Path) -> Path:
        """An empty directory; a temporary one, which cannot become a checkpoint, where there is no
        room.
        """
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            if not self.inside:
                # Local checkpoints are nobody's code: neither git's nor the next submit's.
                (self.checkpoints_dir.parent / ".gitignore").write_text("*\n")
        except OSError as error:
            self._warn("checkpoint", f"checkpoints cannot be kept: {error}")
            return Path(tempfile.mkdtemp(prefix="hatoba-checkpoint-"))
        return partial

    def _publish(self, partial: Path, step: int) -> bool:
        """Give a complete checkpoint its name, which is what makes it one."""
        final = self.checkpoints_dir / f"step-{step}"
        replaced = self.checkpoints_dir / f".old-{step}-{os.getpid()}"
        try:
            if final.exists():
                os.replace(final, replaced)
            os.replace(partial, final)
        except OSError as error:
            self._warn("checkpoint", f"the checkpoint of step {step} cannot be kept: {error}")
            shutil.rmtree(partial, ignore_errors=True)
            return False
        shutil.rmtree(replaced, ignore_errors=True)
        return True

    def _announce(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self.inside:
            return
        values = {str(key): _value(value) for key, value in metrics.items()}
        told = {"step": step, "dir": f"step-{step}", "metrics": values}
        self._append({"t": time.time(), "checkpoint": told})

    def _newest_checkpoint(self) -> Path | None:
        try:
            names = os.listdir(self.checkpoints_dir)
        except OSError:
            return None
        steps = [int(match[1]) for name in names if (match := STEP_DIRECTORY.match(name))]
        return self.checkpoints_dir / f"step-{max(steps)}" if steps else None

    def _append(self, line: dict[str, Any]) -> None:
        data = _line(line)
        if len(data) > MAX_LINE_BYTES:
            self._warn(
                "long", f"a report of {len(data)} bytes is over {MAX_LINE_BYTES} and was dropped"
            )
            return
        try:
            self._write(data)
        except OSError as error:
            self._warn("spool", f"metrics and progress cannot be recorded: {error}")

    def _write(self, data: bytes) -> None:
        assert self.spool is not None
        target = os.open(self.spool, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(target, data)
        finally:
            os.close(target)

    def _made(self, directory: Path) -> Path:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._warn("outputs", f"{directory} cannot be made: {error}")
        return directory

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._say(message)

    def _say(self, message: str) -> None:
        try:
            sys.stderr.write(f"hatoba: {message}\n")
        except (OSError, ValueError, AttributeError):
            return


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _value(value: float) -> float | str:
    """A number as JSON can carry it; NaN and infinities as their names."""
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _whole_or_float(text: str) -> float:
    """Parameters travel as doubles; `epochs=5` must come back as something `range` takes."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _number(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        return default


def _gang(environ: Mapping[str, str]) -> GangPlace | None:
    if "HATOBA_GANG_SIZE" not in environ:
        return None
    return GangPlace(
        _number(environ.get("HATOBA_GANG_RANK"), 0),
        _number(environ.get("HATOBA_GANG_SIZE"), 1),
        _number(environ.get("HATOBA_GANG_GENERATION"), 1),
        tuple(environ.get("HATOBA_GANG_ADDRESSES", "").split(",")),
    )


def _restored(environ: Mapping[str, str]) -> Path | None:
    """A pod's jobs are all told the same name, which stands for a step's directory or for none."""
    found = _path(environ, "HATOBA_RESTORE")
    return found.resolve() if found is not None and found.exists() else None


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    found = environ.get(name)
    return Path(found) if found else None
