"""`hatoba backends check`: a job through all of a backend, and what is missing in words."""

from __future__ import annotations

from pathlib import Path

from command_line import CommandLine
from server_process import configured, running_server

CONFIG = """
[backends.hosts]
type = "hosts"

[backends.mock]
type = "mock"

[backends.cluster]
type = "nowhere"
"""


async def test_a_good_backend_passes_each_step(hatoba: CommandLine) -> None:
    done = await hatoba("backends", "check", "hosts")
    assert done.code == 0, done
    steps = [line.split()[:2] for line in done.out.splitlines()]
    names = ["open", "health", "submit", "launch", "start", "log", "stop", "release"]
    assert steps == [[name, "ok"] for name in names]
    jobs = await hatoba("jobs", "list", "--active")
    assert "probe" not in jobs.out


async def test_what_is_missing_is_named(tmp_path: Path) -> None:
    data = configured(tmp_path / "data", CONFIG)
    async with running_server(data, worker=False) as server:
        hatoba = CommandLine(server, tmp_path)
        unopened = await hatoba("backends", "check", "cluster")
        assert (unopened.code, "FAILED" in unopened.out) == (1, True)
        assert "no plug-in brings type 'nowhere'" in unopened.out
        empty = await hatoba("backends", "check", "hosts", "--patience", "1s")
        assert empty.code == 1
        assert "launch   FAILED" in empty.out
        assert "it is not launched" in empty.out
        pretending = await hatoba("backends", "check", "mock")
        assert (pretending.code, "only acts as if" in pretending.out) == (1, True)
        unknown = await hatoba("backends", "check", "nobody")
        assert unknown.code == 3
        assert "CANCELLED" in (await hatoba("jobs", "list")).out
