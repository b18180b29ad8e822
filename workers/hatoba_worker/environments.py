"""What a command runs in: an interpreter that is there, or one built once for its requirements."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from hatoba.v1 import job_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.failures import AttemptFailed, environment_failed
from hatoba_worker.tails import last_lines

log = structlog.get_logger(__name__)

MOST_VENVS = 50
Build = asyncio.Task[AttemptFailed | None]
_PYTHONS = ("python", "python3")
_PROBE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('hatoba') is None)"
_IDENTITY = "import sys; print(sys.version, sys.prefix, sys.implementation.cache_tag)"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`python` is what `python` and `python3` mean; `bin` goes first on PATH. Empty: as found.

    `lacks_client` tells that `import hatoba` would fail without our help.
    """

    python: str = ""
    bin: str = ""
    lacks_client: bool = False

    def command(self, argv: list[str]) -> list[str]:
        """`argv` with its program resolved; a program that ends in `.py` is run by python."""
        if not self.python:
            return argv
        if argv[0] in _PYTHONS:
            return [self.python, *argv[1:]]
        if argv[0].endswith(".py"):
            return [self.python, *argv]
        return argv


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who wants an environment, and where its build log is to be seen.

    The environment is kept until `release` of this name.
    """

    name: str
    wanted: job_pb2.Environment
    build_log: str


class Environments:
    """Finds and builds interpreters. A build is done once however many wait for it."""

    def __init__(
        self,
        data: Path,
        environ: Mapping[str, str],
        tasks: asyncio.TaskGroup,
        *,
        embedded: bool,
        most: int = MOST_VENVS,
    ) -> None:
        self._root = data / "venvs"
        self._environ = environ
        self._tasks = tasks
        self._embedded = embedded
        self._most = most
        self._builds: dict[str, Build] = {}
        self._lacking: dict[str, bool] = {}
        self._pins: dict[str, str] = {}

    def known(self, wanted: job_pb2.Environment) -> Interpreter | None:
        """The answer, when it is known without looking."""
        if wanted.python or wanted.requirements or wanted.image:
            return None
        python = wanted.caller_interpreter
        lacks = self._lacking.get(python)
        if lacks is None or (python and not self._embedded):
            return None
        return Interpreter(python, os.path.dirname(python), lacks)

    async def warm_up(self) -> None:
        """Look at the interpreter on PATH before somebody waits for that."""
        await self._lacks_client("")

    async def resolve(self, tenant: Tenant) -> Interpreter:
        """What an attempt or replica runs in; raises AttemptFailed (ENVIRONMENT_FAILED)."""
        wanted = tenant.wanted
        if wanted.requirements:
            found = await self._built(tenant)
        elif wanted.python:
            python = await asyncio.to_thread(self._locate, wanted.python)
            found = Interpreter(python, os.path.dirname(python))
        elif wanted.caller_interpreter:
            found = await asyncio.to_thread(self._callers, wanted.caller_interpreter)
        else:
            found = Interpreter()
        return replace(found, lacks_client=await self._lacks_client(found.python))

    def release(self, name: str) -> None:
        """Its tenant needs an environment no more."""
        self._pins.pop(name, None)

    def _callers(self, python: str) -> Interpreter:
        if not self._embedded:
            raise environment_failed(
                f"{python} is the submitter's own interpreter, which only the embedded worker runs;"
                " name a python version or requirements"
            )
        if not os.access(python, os.X_OK):
            raise environment_failed(f"the interpreter {python} is not here any more")
        return Interpreter(python, os.path.dirname(python))

    def _locate(self, wanted: str) -> str:
        """An interpreter by path, or by version as `python3.11` on PATH."""
        name = wanted if "/" in wanted or wanted.startswith("python") else f"python{wanted}"
        found = shutil.which(name, path=self._environ.get("PATH"))
        if found is None:
            raise environment_failed(f"no interpreter {name} on this host")
        return found

    async def _lacks_client(self, python: str) -> bool:
        if python not in self._lacking:
            program = python or shutil.which("python3", path=self._environ.get("PATH")) or ""
            self._lacking[python] = bool(program) and await _fails(program, _PROBE)
        return self._lacking[python]

    # -- building -------------------------------------------------------------------------------

    async def _built(self, tenant: Tenant) -> Interpreter:
        wanted = tenant.wanted
        base = await asyncio.to_thread(self._locate, wanted.python) if wanted.python else ""
        base = base or sys.executable
        key = await _key(base, wanted.requirements)
        self._pins[tenant.name] = key
        if not await asyncio.to_thread(_use, self._root / key):
            build = self._builds.get(key) or self._begin(key, base, wanted.requirements)
            # One file with many names: everyone who waits sees the build as it goes.
            tinyfiles.share(self._log(key), tenant.build_log)
            failure = await asyncio.shield(build)
            if failure:
                raise failure
        venv = await asyncio.to_thread(os.path.realpath, self._root / key)
        return Interpreter(f"{venv}/bin/python", f"{venv}/bin")

    def _begin(self, key: str, base: str, requirements: str) -> Build:
        # Never emptied: an earlier attempt may share the old one.
        tinyfiles.fresh(self._log(key))
        build = self._tasks.create_task(self._build(key, base, requirements), name=f"build {key}")
        self._builds[key] = build
        return build

    def _log(self, key: str) -> str:
        return f"{self._root}/{key}.log"

    async def _build(self, key: str, base: str, requirements: str) -> AttemptFailed | None:
        """Build a venv; returns why that failed. Never raises: others' builds go on."""
        try:
            return await self._install(key, base, requirements)
        except OSError as error:
            return environment_failed(f"the environment could not be built: {error}")
        finally:
            self._builds.pop(key, None)

    async def _install(self, key: str, base: str, requirements: str) -> AttemptFailed | None:
        # In place and under a name of its own: a venv cannot be moved, and what a dead worker
        # began may still be written to.
        venv = self._root / f"{key}.{os.urandom(4).hex()}"
        listing = Path(f"{venv}.txt")
        await asyncio.to_thread(listing.write_text, requirements, "utf-8")
        for command in _commands(venv, base, listing):
            if await self._run(command, self._log(key)) != 0:
                await asyncio.to_thread(shutil.rmtree, venv, True)
                lines = last_lines(self._log(key))
                return environment_failed(
                    "the requirements could not be installed; the build log says why", lines
                )
        await asyncio.to_thread(_publish, venv, self._root / key)
        await asyncio.to_thread(self._shrink)
        return None

    async def _run(self, command: list[str], path: str) -> int:
        log.info("environment.build", command=command)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                env=_build_environment(self._environ),
                start_new_session=True,
            )
        finally:
            os.close(handle)
        try:
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _shrink(self) -> None:
        """Remove the least recently used beyond the limit, except those in use; blocks."""
        kept = set(self._pins.values()) | set(self._builds)
        links = [path for path in self._root.iterdir() if path.is_symlink()]
        links.sort(key=lambda path: path.lstat().st_mtime)
        for link in links[: max(0, len(links) - self._most)]:
            if link.name not in kept:
                venv = link.resolve()
                link.unlink()
                shutil.rmtree(venv, ignore_errors=True)
                Path(self._log(link.name)).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what dead builds left; blocks. To be called once, before any build."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        links = [path for path in self._root.iterdir() if path.is_symlink()]
        used = {link.resolve().name for link in links}
        for path in self._root.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in used:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".txt":
                path.unlink(missing_ok=True)


def normalised(requirements: str) -> str:
    """Requirements without comments and blank lines: what makes two of them the same."""
    lines = (line.split(" #")[0].strip() for line in requirements.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


async def _key(base: str, requirements: str) -> str:
    identity = await _output(base, _IDENTITY)
    content = f"{base}\n{identity}\n{normalised(requirements)}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _commands(venv: Path, base: str, listing: Path) -> list[list[str]]:
    uv = _uv()
    python = str(venv / "bin" / "python")
    return [
        [uv, "venv", "--no-project", "--python", base, str(venv)],
        [uv, "pip", "install", "--python", python, "-r", str(listing)],
    ]


def _uv() -> str:
    try:
        import uv
    except ImportError:
        return "uv"
    return str(uv.find_uv_bin())


def _build_environment(environ: Mapping[str, str]) -> dict[str, str]:
    # What is installed may run code of its own: our secrets are not for it.
    ours = {name: value for name, value in environ.items() if not name.startswith("HATOBA_")}
    return {**ours, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}


def _publish(venv: Path, link: Path) -> None:
    fresh = Path(f"{venv}.link")
    fresh.symlink_to(venv.name)
    fresh.replace(link)
    Path(f"{venv}.txt").unlink()


def _use(link: Path) -> bool:
    """Whether it is there, and noted as used now."""
    try:
        os.utime(link, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return link.exists()


async def _fails(python: str, code: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        python,
        "-c",
        code,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    return await process.wait() != 0


async def _output(python: str, code: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            "-c",
            code,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise environment_failed(f"the interpreter {python} does not run: {error}") from error
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise environment_failed(f"the interpreter {python} does not run")
    return out.decode(errors="replace").strip()
