"""Worker and router that come with a server: begun and ended by commands that the server runs.

`python -m hatoba_worker.embedded embed --data DIR` returns once the directory's keeper has a worker
and a router to run; they live on when the server ends. `end` ends them, and the jobs with them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hatoba import __version__
from hatoba_worker.keeper.client import KeeperClient
from hatoba_worker.keeper.ensure import KeeperStartError, ensure_keeper

VERSION = "HATOBA_WORKER_VERSION"
PROCESSES = {
    "worker": ("hatoba_worker", "run", "--embedded"),
    "router": ("hatoba_worker.router",),
}
"""Module and arguments of what the keeper runs, by its name there."""


async def embed(data: Path, environ: Mapping[str, str]) -> None:
    """Have the directory's keeper run worker and router of this version. Raises
    KeeperStartError."""
    await asyncio.to_thread(ensure_keeper, data)
    env = {**environ, VERSION: __version__, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    async with await KeeperClient.connect(data) as keeper:
        known = {one.name: one for one in (await keeper.list()).supervised}
        for name, (module, *arguments) in PROCESSES.items():
            command = [sys.executable, "-m", module, *arguments, "--data", str(data)]
            await keeper.supervise(name, command, env, str(data), str(data / f"{name}.log"))
            if name in known and not _same_version(known[name].pid):
                await keeper.restart(name)


def _same_version(pid: int | None) -> bool:
    """Whether a running process is of this version; one that is between two starts will be."""
    if not pid:
        return True
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True
    return f"{VERSION}={__version__}".encode() in environ.split(b"\0")


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0 when it was carried out."""
    parser = argparse.ArgumentParser(prog="hatoba_worker.embedded", description=__doc__)
    parser.add_argument("command", choices=("embed", "end"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grace", type=float, default=10.0)
    options = parser.parse_args(arguments)
    try:
        if options.command == "embed":
            asyncio.run(embed(options.data, os.environ))
        else:
            from hatoba_worker.main import end_all

            asyncio.run(end_all(options.data.resolve(), options.grace))
    except KeeperStartError as error:
        sys.stderr.write(f"hatoba worker: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
