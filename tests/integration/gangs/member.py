"""What jobs of these tests do: they leave word of themselves in a directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from hatoba.job_context import current_job

POLL = 0.01


def main(marks: Path, mode: str) -> None:
    job = current_job()
    if mode.startswith("saves"):
        save(marks, late=mode == "saves-late")
        return
    if job.gang is None:
        (marks / mode).touch()
        while mode == "block" and not (marks / "go").exists():
            time.sleep(POLL)
        return
    begin(marks)
    if mode == "linger" and job.gang.generation == 1:
        linger(marks)


def begin(marks: Path) -> None:
    """Say who this is, and whether a member of an older generation is alive still."""
    gang = current_job().gang
    assert gang is not None
    told = {
        "rank": gang.rank,
        "size": gang.size,
        "addresses": gang.addresses,
        "master": f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
        "pid": os.getpid(),
    }
    for older in marks.glob("began-*"):
        generation, pid = older.name.split("-")[1], json.loads(older.read_text())["pid"]
        if int(generation) < gang.generation and alive(pid):
            (marks / f"overlap-{gang.rank}-{pid}").touch()
    mark = marks / f"began-{gang.generation}-{gang.rank}"
    partial = marks / f".{mark.name}"
    partial.write_text(json.dumps(told))
    partial.rename(mark)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def linger(marks: Path) -> None:
    """Take a second to end when asked to."""
    gang = current_job().gang
    assert gang is not None
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    while not asked:
        time.sleep(POLL)
    time.sleep(1.0)
    (marks / f"lingered-{gang.generation}-{gang.rank}").touch()


def save(marks: Path, *, late: bool) -> None:
    """Save when asked to (late: and told to go on), give way; go on from there the next time."""
    job = current_job()
    latest = job.latest_checkpoint
    if latest is not None:
        (marks / "went-on").write_text((latest / "state").read_text())
        return
    alive_mark = marks / f"alive-{os.getpid()}"
    alive_mark.touch()
    (marks / "began-0-0").touch()
    while not job.checkpoint_requested:
        time.sleep(POLL)
    (marks / "asked").touch()
    while late and not (marks / "go").exists():
        time.sleep(POLL)
    with job.checkpoint(step=7) as path:
        (path / "state").write_text("seven")
    (marks / "saved").touch()
    alive_mark.unlink()
    job.give_way()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
