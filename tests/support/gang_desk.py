"""Hears what the members of gangs on a cluster tell, and says how each is to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from listening import listening
from waiting import News


@dataclass(eq=False)
class Member:
    """One life of a member: `met` are the ranks that answered it, `there` until it ends."""

    told: dict[str, Any]
    writer: asyncio.StreamWriter
    met: list[int] | None = None
    seconds: float = 0.0
    there: bool = True

    @property
    def place(self) -> tuple[int, int]:
        """Its generation and rank."""
        return self.told["generation"], self.told["rank"]

    async def end(self, code: int) -> None:
        """Tell it to end with this code."""
        self.writer.write(f"{code}\n".encode())
        await self.writer.drain()


class GangDesk:
    """All that have come, in that order; `overlaps` are those that came while one of an older
    generation was there.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.overlaps: list[tuple[Member, Member]] = []
        self.address = ""
        self._news = News()

    @classmethod
    @asynccontextmanager
    async def running(cls, host: str) -> AsyncIterator[GangDesk]:
        """One that listens where pods reach it."""
        desk = cls()
        async with listening(desk._comes, host) as (address, port):
            desk.address = f"{address}:{port}"
            yield desk

    async def until_met(self, generation: int, size: int, patience: float) -> list[Member]:
        """The members of a generation by rank, once all have met all."""
        await self._news.until(lambda: len(self._met(generation)) == size, patience)
        return sorted(self._met(generation), key=lambda one: one.place)

    async def until_gone(self, members: Sequence[Member], patience: float) -> None:
        """Return when these have ended."""
        await self._news.until(lambda: not any(one.there for one in members), patience)

    def _met(self, generation: int) -> list[Member]:
        return [one for one in self.members if one.place[0] == generation and one.met is not None]

    async def _comes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = Member(json.loads(await reader.readline()), writer)
        older = [one for one in self.members if one.there and one.place < member.place]
        self.overlaps += [(one, member) for one in older if one.place[0] < member.place[0]]
        self.members.append(member)
        try:
            if line := await reader.readline():
                told = json.loads(line)
                member.met, member.seconds = told["met"], told["seconds"]
                self._news.tell()
                await reader.read()
        except ConnectionError:
            pass
        finally:
            member.there = False
            self._news.tell()
