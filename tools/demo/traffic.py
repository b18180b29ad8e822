"""Requests that never stop: what users of a served model do while somebody promotes another one."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class Address:
    """A deployment at a router: `host:port`, its path, and a token that opens it."""

    router: str
    path: str
    token: str


@dataclass
class Answer:
    """One reply."""

    status: int
    body: dict[str, Any]
    model: str
    trace_id: str


class Caller:
    """One connection that asks for predictions, one after another."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection = http.client.HTTPConnection(address.router, timeout=REQUEST_SECONDS)

    def ask(self, image: bytes, media_type: str = "image/png") -> Answer:
        """Predict one image. Raises OSError and HTTPException when no reply comes."""
        headers = {
            "content-type": media_type,
            "authorization": f"Bearer {self._address.token}",
        }
        self._connection.request("POST", self._address.path, image, headers)
        reply = self._connection.getresponse()
        body = reply.read()
        return Answer(
            reply.status,
            json.loads(body) if body else {},
            reply.headers.get("hatoba-model", ""),
            reply.headers.get("hatoba-trace-id", ""),
        )

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@dataclass
class Tally:
    """What became of the requests."""

    models: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def answered(self) -> int:
        """Requests that got a prediction."""
        return sum(self.models.values())

    def __str__(self) -> str:
        """One line for people."""
        by_model = ", ".join(f"{count:,} by {name}" for name, count in sorted(self.models.items()))
        return f"{self.answered:,} answered ({by_model}), {len(self.failures)} failed"


class Traffic:
    """Clients that send images all the time, from `with` to its end."""

    def __init__(self, address: Address, images: Sequence[bytes], clients: int) -> None:
        self.tally = Tally()
        self._address = address
        self._images = images
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client-{number}")
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        caller = Caller(self._address)
        for image in itertools.islice(itertools.cycle(self._images), number * 7, None):
            if self._over.is_set():
                break
            began = time.monotonic()
            found = self._ask(caller, image)
            with self._lock:
                self._count(found, time.monotonic() - began)
        caller.close()

    def _ask(self, caller: Caller, image: bytes) -> Answer | str:
        """The answer, or in words why there is none."""
        try:
            return caller.ask(image)
        except (OSError, http.client.HTTPException) as error:
            caller.close()
            return repr(error)

    def _count(self, found: Answer | str, took: float) -> None:
        self.tally.slowest = max(self.tally.slowest, took)
        if isinstance(found, str):
            self.tally.failures.append(found)
        elif found.status == 200:
            self.tally.models[found.model] += 1
        else:
            self.tally.failures.append(f"{found.status} {found.body}")


def accuracy(address: Address, images: Sequence[Path]) -> float:
    """Share of images, in folders called by their digit, that are recognised."""
    caller = Caller(address)
    right = sum(
        str(caller.ask(path.read_bytes()).body.get("digit")) == path.parent.name for path in images
    )
    caller.close()
    return right / len(images)
