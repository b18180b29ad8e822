"""Stands beside one command, outlives the scheduler, and writes down how it ended.

`python keep.py FOLDER` returns as soon as the command's keeper is on its own. The keeper's first
act is to create `keeper.json`; that can succeed once, so a command runs once however often this is
called. Standard library only: it is started as a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks. OSError when it is none, or a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(f"{pid} is dead")
    return fields[19]


def create(path: Path, content: object) -> bool:
    """Write a file that must not exist yet, whole or not at all; False when it does."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fresh.write_text(json.dumps(content))
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    return True


def main(folder: Path) -> None:
    """Leave a keeper behind that runs the folder's command."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)  # until the keeper has said that it is there
        return
    os.close(reader)
    os.setsid()
    if create(folder / "keeper.json", {"pid": os.getpid(), "born": born(os.getpid())}):
        os.close(writer)
        create(folder / "exit.json", run(folder))


def run(folder: Path) -> dict[str, object]:
    """Run the command to its end and say how it ended."""
    stopped = False
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    # A handler, and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, pass_on)
    if (folder / "stop.json").exists():
        return {"stopped": True}
    wanted = json.loads((folder / "object.json").read_text())
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        try:
            child = subprocess.Popen(
                wanted["command"],
                env=os.environ | wanted["env"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        except OSError as error:
            return {"failed": str(error)}
    if stopped:
        child.terminate()
    code = child.wait()
    return {"signal": -code} if code < 0 else {"code": code}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
