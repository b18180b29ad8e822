"""The shell's part of jobs that stay: run by a real shell, wherever one may be."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from hatoba.staying import INTERACTIVE, held, staying, visiting
from hatoba.v1 import job_pb2

PATIENCE = 60.0


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_what_goes_well_ends_at_once(tmp_path: Path) -> None:
    done = start(held(["sh", "-c", "echo out; echo $0-$1", "a", "b c"], 1000), tmp_path)
    out, error = done.communicate(timeout=PATIENCE)
    assert (done.returncode, out, error) == (0, "out\na-b c\n", "")


def test_what_fails_keeps_its_place_and_its_exit_code(tmp_path: Path) -> None:
    with start(held(["sh", "-c", "exit 7"], 1000), tmp_path) as done:
        assert done.stderr is not None
        assert "exit code 7; its place is kept for 1000 s" in done.stderr.readline()
        assert done.poll() is None
        done.send_signal(signal.SIGTERM)
        assert done.wait(PATIENCE) == 7
    with start(held(["sh", "-c", "exit 3"], 1), tmp_path) as short:
        assert short.wait(PATIENCE) == 3


def test_a_stop_reaches_the_command_and_holds_nothing(tmp_path: Path) -> None:
    script = "sleep 1000 & p=$!; trap 'kill $p; echo saved; exit 5' TERM; echo up; wait"
    with start(held(["sh", "-c", script], 1000), tmp_path) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == "up\n"
        done.send_signal(signal.SIGTERM)
        assert done.stdout.readline() == "saved\n"
        assert done.wait(PATIENCE) == 5


def test_a_script_is_pythons(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('ran')\n")
    done = start(held(["train.py"], 1), tmp_path)
    out, _ = done.communicate(timeout=PATIENCE)
    assert (done.returncode, out) == (0, "ran\n")


@pytest.mark.parametrize("visited", [False, True])
def test_it_waits_for_visitors_and_ends_well(tmp_path: Path, visited: bool) -> None:
    command = staying(2)
    place = start(command, tmp_path)
    if visited:
        spec = job_pb2.JobSpec(command=command)
        inside = start(visiting(spec, ["sh", "-c", "echo in; read line; exit 4"]), tmp_path)
        assert inside.stdout is not None
        assert inside.stdout.readline() == "in\n"
        inside.kill()
        inside.communicate()
    place.communicate(timeout=PATIENCE)
    assert place.returncode == 0


def test_only_what_waits_for_visitors_is_told_of_them() -> None:
    plain = job_pb2.JobSpec(command=["python", "train.py"])
    assert visiting(plain, ["sh"]) == ["sh"]
    told = visiting(job_pb2.JobSpec(command=staying(5)), ["sh", "-c", "x"])
    assert told[3:] == [INTERACTIVE, "sh", "-c", "x"]
