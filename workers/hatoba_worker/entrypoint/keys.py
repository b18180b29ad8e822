"""What the runner proves itself with, kept on its disk: a nonce, and its claim's credential."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import structlog

from hatoba.runs import nonce_for
from hatoba_worker import tinyfiles

FILE = "claim.json"
log = structlog.get_logger(__name__)


class Keys:
    """The nonce is on disk before it is shown to anybody; a newer credential replaces the older.

    A directory that was left by another attempt's runner is not taken for ours.
    """

    def __init__(self, directory: Path, attempt: str, fence: int) -> None:
        self._path = directory / FILE
        self._attempt = attempt
        self._fence = fence
        self.nonce = ""
        self.credential = ""
        """Opens everything but the claim; empty before there is one."""

    def load(self) -> bool:
        """Read what an earlier runner of this attempt wrote down; False when none did. Blocks."""
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            ours = (told["attempt"], told["fence"]) == (self._attempt, self._fence)
            nonce, credential = str(told["nonce"]), str(told["credential"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if ours:
            self.nonce, self.credential = nonce, credential
        return ours

    def make(self, run: str) -> None:
        """Choose a nonce of this run and write it down; raises OSError. Blocks."""
        self.nonce = nonce_for(run, uuid.uuid4().hex)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write()
        handle = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def renew(self, credential: str) -> None:
        """Show this from now on; nothing happens without one."""
        if not credential or credential == self.credential:
            return
        self.credential = credential
        try:
            self._write()
        except OSError as error:
            # The next runner claims again with its nonce, and is given another.
            log.warning("credential.not_kept", error=str(error))

    def _write(self) -> None:
        body = {
            "attempt": self._attempt,
            "fence": self._fence,
            "nonce": self.nonce,
            "credential": self.credential,
        }
        tinyfiles.swap(str(self._path), json.dumps(body).encode())
