"""Interpreters found, venvs built once, and builds that fail."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from worker_house import House

from hatoba.v1 import job_pb2, runner_pb2

FAILED = runner_pb2.EXIT_KIND_ENVIRONMENT_FAILED


def wheel(directory: Path, name: str = "tiny") -> Path:
    """A distribution with one module, made by hand so that nothing has to be fetched."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "VALUE = 42\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


async def test_requirements_are_built_once_and_shared(house: House) -> None:
    requirements = f"# what it needs\n{wheel(house.data)}\n"
    for attempt, spelling in (("a-1", requirements), ("a-2", requirements.split("\n", 1)[1])):
        wanted = job_pb2.Environment(requirements=spelling)
        house.run(attempt, "python", "-c", "import tiny; print(tiny.VALUE)", environment=wanted)
    for attempt in ("a-1", "a-2"):
        commit = await house.commit(attempt)
        assert commit.exit_code == 0, list(commit.last_log_lines)
        await house.forgotten(attempt)
        assert house.server.log(attempt) == b"42\n"
        assert b"tiny" in house.server.log(attempt, "build")
    venvs = [path for path in (house.data / "venvs").iterdir() if path.is_symlink()]
    assert len(venvs) == 1
    house.run(
        "a-3",
        "python3",
        "-c",
        "import tiny",
        environment=job_pb2.Environment(requirements=requirements),
    )
    assert (await house.commit("a-3")).exit_code == 0
    assert "build" not in (await house.commit("a-3")).log_sizes


async def test_requirements_that_do_not_resolve_fail_the_attempt(house: House) -> None:
    environment = job_pb2.Environment(requirements="/no/such/wheel-1.0-py3-none-any.whl\n")
    house.run("a-1", "python", "-c", "pass", environment=environment)
    commit = await house.commit("a-1")
    assert commit.kind == FAILED
    assert any("/no/such/wheel" in line for line in commit.last_log_lines)
    assert commit.log_sizes["build"] > 0
    await house.forgotten("a-1")
    assert b"/no/such/wheel" in house.server.log("a-1", "build")


async def test_an_interpreter_that_is_not_here_fails_the_attempt(house: House) -> None:
    house.run("a-1", "python", environment=job_pb2.Environment(python="2.3"))
    commit = await house.commit("a-1")
    assert (commit.kind, commit.message) == (FAILED, "no interpreter python2.3 on this host")


async def test_an_image_is_refused(house: House) -> None:
    house.run("a-1", "python", environment=job_pb2.Environment(image="busybox"))
    commit = await house.commit("a-1")
    assert commit.kind == FAILED
    assert "busybox" in commit.message


async def test_the_callers_interpreter_runs_scripts_too(house: House) -> None:
    environment = job_pb2.Environment(caller_interpreter=sys.executable)
    code = house.server.store({"show.py": b"import sys; print(sys.executable, sys.argv[1:])"})
    house.run("a-1", "show.py", "x", environment=environment, code=code)
    await house.logged("a-1", f"{sys.executable} ['x']\n".encode())
    house.run("a-2", "python", "-c", "import sys; print(sys.executable)", environment=environment)
    await house.logged("a-2", f"{sys.executable}\n".encode())


async def test_only_the_embedded_worker_runs_the_callers_interpreter(house: House) -> None:
    await house.kill_worker()
    house.settings |= {"embedded": False, "server": f"127.0.0.1:{house.server.port}"}
    await house.start_worker()
    environment = job_pb2.Environment(caller_interpreter=sys.executable)
    house.run("a-1", "python", "-c", "pass", environment=environment)
    assert (await house.commit("a-1")).kind == FAILED


async def test_a_stop_while_an_environment_is_built(house: House) -> None:
    slow = house.data / "slow"
    slow.mkdir()
    (slow / "setup.py").write_text("import time; open('../building', 'w'); time.sleep(60)")
    (slow / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "setup"\nbackend-path = ["."]\n'
    )
    house.run("a-1", "python", environment=job_pb2.Environment(requirements=f"{slow}\n"))
    await house.logged("a-1", b"venv", "build")
    house.server.tell_stop("a-1")
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_STOPPED
    assert not commit.HasField("start_time")
