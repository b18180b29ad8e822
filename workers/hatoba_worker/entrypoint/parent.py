"""The parent of the runner, process 1 of a container or not: passes on signals, reaps, and starts
the runner again when it dies.

It imports nothing large and does nothing that could fail: it stays for as long as the container.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.endings import kill_all

CODE_FILE = "exit-code"
MOST_LIVES = 10
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
CRASHED = 70
"""Exit code when the runner dies again and again."""
ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
PASSED_ON = ENDING | {
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
}
_WATCHED = PASSED_ON | {signal.SIGCHLD}


class Parent:
    """Runs `command` until it has written its exit code into `code_file`."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        code_file: Path | None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Without a `code_file` its own exit code is taken, whatever it is."""
        self._command = list(command)
        self._environ = dict(environ)
        self._code_file = code_file
        self._pause = pause
        self._child = 0
        self._asked: signal.Signals | None = None

    def run(self) -> int:
        """Stay until the end; returns the exit code."""
        procfs.become_subreaper()
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        if self._code_file is not None:
            self._code_file.unlink(missing_ok=True)
        pause = FIRST_PAUSE
        try:
            for _ in range(MOST_LIVES):
                code = self._live()
                if code is not None:
                    return code
                self._pause(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            return CRASHED
        finally:
            kill_all(lambda: procfs.descendants(procfs.children(os.getpid())))

    def _live(self) -> int | None:
        """One life of the child; its exit code, or None when it has to begin again."""
        self._child = os.posix_spawn(
            self._command[0],
            self._command,
            self._environ,
            # Ctrl-C reaches it through us, once.
            setpgroup=0,
            setsigmask=(),
            setsigdef=_WATCHED,
        )
        if self._asked is not None:
            os.kill(self._child, self._asked)
        while True:
            found = signal.sigwaitinfo(_WATCHED).si_signo
            if found in PASSED_ON:
                self._pass_on(signal.Signals(found))
            status = self._reap()
            if status is not None:
                return self._judge(status)

    def _pass_on(self, number: signal.Signals) -> None:
        if number in ENDING:
            self._asked = number
        os.kill(self._child, number)

    def _reap(self) -> int | None:
        """Bury all that has ended; the child's status if it was among them."""
        mine = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return mine
            if pid == 0:
                return mine
            if pid == self._child:
                mine = status

    def _judge(self, status: int) -> int | None:
        code = os.waitstatus_to_exitcode(status)
        if self._code_file is None:
            return code if code >= 0 else 128 - code
        try:
            return int(self._code_file.read_text("ascii"))
        except (OSError, ValueError):
            sys.stderr.write(f"hatoba-entrypoint: the runner died ({code}) and begins again\n")
            return None
