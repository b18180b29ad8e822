"""Where a directory's code came from."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

TIMEOUT_SECONDS = 5.0
MAX_VALUE = 1024
MAX_PATCH = 1024 * 1024
MAX_UNTRACKED = 1_000
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")
# A repository that was cloned from somebody must not have us run its programs.
_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git_source(directory: str | Path) -> dict[str, str]:
    """`remote` (without credentials), `commit`, and `dirty` (`true` or `false`); only those known.

    `dirty` counts files that git does not know. Empty without git, outside of a repository, and
    when git takes longer than 5 s. Blocks.
    """
    status = _git(directory, "status", "--porcelain=v2", "--branch", "--untracked-files=normal")
    if status is None:
        return {}
    lines = status.splitlines()
    heads = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    dirty = any(not line.startswith("#") for line in lines)
    found = {"dirty": "true" if dirty else "false"}
    if heads and heads[0] != "(initial)":
        found["commit"] = heads[0]
    if remote := _remote(directory):
        found["remote"] = remote
    return found


def git_patch(directory: str | Path) -> bytes:
    """How what lies below a directory differs from its commit: a patch of at most 1 MiB, and a
    line for each file that git does not know. Blocks.
    """
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--relative", "HEAD", "--", ".")
    found = (_git(directory, "diff", *plain) or "").encode(errors="replace")
    if len(found) > MAX_PATCH:
        cut = found[:MAX_PATCH].rpartition(b"\n")[0]
        found = cut + f"\n# and {len(found) - len(cut):,} bytes more\n".encode()
    listed = _git(directory, "ls-files", "--others", "--exclude-standard", "-z") or ""
    names = sorted(filter(None, listed.split("\0")))
    lines = [f"# not known to git: {name!r}\n" for name in names[:MAX_UNTRACKED]]
    if len(names) > MAX_UNTRACKED:
        lines.append(f"# and {len(names) - MAX_UNTRACKED:,} files more\n")
    return found + "".join(lines).encode(errors="replace")


def _remote(directory: str | Path) -> str:
    listed = _git(directory, "remote", "--verbose") or ""
    remotes = dict(line.split()[:2] for line in listed.splitlines() if len(line.split()) > 1)
    url = remotes.get("origin") or next(iter(remotes.values()), "")
    return without_credentials(url)


def without_credentials(url: str) -> str:
    """An address without user and password, at most 1,024 characters of it."""
    return _CREDENTIALS.sub("", url)[:MAX_VALUE]


def _git(directory: str | Path, *arguments: str) -> str | None:
    environment = os.environ | {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(directory), *_SAFE, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
