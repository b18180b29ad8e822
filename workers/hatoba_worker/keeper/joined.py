"""Becomes a command whose standard handles come over the socket `s` of the current directory.

`joined.py CWD PROGRAM [ARGUMENT]...`, standard library only, run without a site. The socket gives
one handle, a terminal that becomes the controlling one, or three.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios

SOCKET = "s"
NOT_EXECUTABLE = 126
NOT_FOUND = 127


def main(cwd: str, argv: list[str]) -> int:
    """Does not return when all goes well; else the exit code that shells use."""
    with socket.socket(socket.AF_UNIX) as giver:
        giver.connect(SOCKET)
        _, handles, _, _ = socket.recv_fds(giver, 1, 3)
    if not handles:
        return NOT_EXECUTABLE
    if len(handles) == 1:
        fcntl.ioctl(handles[0], termios.TIOCSCTTY, 0)
        handles *= 3
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
    for handle in set(handles):
        os.close(handle)
    try:
        os.chdir(cwd)
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
