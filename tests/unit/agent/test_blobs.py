"""Blobs over a link that breaks: never twice the same byte, never another than the digest says."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hatoba_worker.agent import blobs
from hatoba_worker.agent.blobs import BlobStore, Cut, Full, Gone, Wrong

DATA = random.Random(1).randbytes(100_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@dataclass
class Link:
    """A source that has one blob; it is cut behind each of these offsets, once."""

    data: bytes = DATA
    cuts: list[int] = field(default_factory=list)
    piece: int = 4_000
    missing: bool = False
    asked: list[int] = field(default_factory=list)
    sent: int = 0

    async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        self.asked.append(offset)
        if self.missing:
            raise Gone(f"there is no {digest}")
        while offset < len(self.data):
            piece = self.data[offset : offset + self.piece]
            if self.cuts and offset + len(piece) > self.cuts[0]:
                piece = piece[: self.cuts.pop(0) - offset]
                self.sent += len(piece)
                yield piece
                raise Cut("the link broke")
            self.sent += len(piece)
            yield piece
            offset += len(piece)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "blobs")
    made.prepare()
    return made


async def fetched(store: BlobStore, link: Link) -> bytes:
    """The blob, asked for again after each cut."""
    while True:
        try:
            path = await store.fetch(DIGEST, len(DATA), link)
        except Cut:
            continue
        return await asyncio.to_thread(path.read_bytes)


async def test_a_link_that_is_cut_at_each_tenth_brings_every_byte_once(store: BlobStore) -> None:
    link = Link(cuts=[len(DATA) * tenth // 10 for tenth in range(1, 10)])
    assert await fetched(store, link) == DATA
    assert link.sent == store.brought == len(DATA)
    assert len(link.asked) == 10
    assert await asyncio.to_thread(store.has, DIGEST)


async def test_what_is_here_is_not_asked_for(store: BlobStore) -> None:
    await fetched(store, Link())
    again = Link()
    assert await fetched(store, again) == DATA
    assert again.asked == []


async def test_an_agent_that_was_killed_goes_on_where_it_was(store: BlobStore) -> None:
    with pytest.raises(Cut):
        await store.fetch(DIGEST, len(DATA), Link(cuts=[60_000]))
    assert not await asyncio.to_thread(store.has, DIGEST)
    assert await asyncio.to_thread(store.size, DIGEST) == 60_000
    again = Link()
    other = BlobStore(store.path(DIGEST).parent)
    assert await fetched(other, again) == DATA
    assert again.asked == [60_000]


async def test_torn_bytes_of_a_power_cut_are_found_and_brought_again(store: BlobStore) -> None:
    with pytest.raises(Cut):
        await store.fetch(DIGEST, len(DATA), Link(cuts=[60_000]))
    partial = store.path(DIGEST).with_name(f"{store.path(DIGEST).name}.part")
    data = await asyncio.to_thread(partial.read_bytes)
    await asyncio.to_thread(partial.write_bytes, data[:50_000] + bytes(10_000))
    link = Link()
    assert await fetched(store, link) == DATA
    assert link.asked == [60_000, 0]


async def test_other_bytes_than_the_digest_says_never_get_its_name(store: BlobStore) -> None:
    link = Link(data=DATA[::-1])
    with pytest.raises(Wrong):
        await store.fetch(DIGEST, len(DATA), link)
    assert not await asyncio.to_thread(store.has, DIGEST)
    assert await asyncio.to_thread(store.size, DIGEST) == 0


async def test_more_than_was_said_is_not_taken(store: BlobStore) -> None:
    assert await fetched(store, Link(data=DATA + b"and more")) == DATA


async def test_an_end_that_comes_too_early_is_a_cut(store: BlobStore) -> None:
    with pytest.raises(Cut, match="it ended after 50000 of 100000 bytes"):
        await store.fetch(DIGEST, len(DATA), Link(data=DATA[:50_000]))


async def test_a_link_that_says_nothing_is_given_up(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Link):
        async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    monkeypatch.setattr(blobs, "READ_SECONDS", 0.01)
    with pytest.raises(Cut, match="no byte came"):
        await store.fetch(DIGEST, len(DATA), Silent())


async def test_what_nobody_has_is_said_at_once(store: BlobStore) -> None:
    with pytest.raises(Gone):
        await store.fetch(DIGEST, len(DATA), Link(missing=True))


async def test_a_full_disk_is_said_with_figures_before_anything_is_fetched(
    store: BlobStore,
) -> None:
    link = Link()
    with pytest.raises(Full, match=r"it needs 1,000,000,000.0 MB of disk, and there are"):
        await store.fetch(DIGEST, 10**15, link)
    assert link.asked == []


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.write, 0

    def filling(handle: int, data: bytes) -> int:
        nonlocal written
        if len(data) == 4_000:
            written += len(data)
            if written > 20_000:
                raise OSError(errno.ENOSPC, "no space")
        return real(handle, data)

    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(OSError, match="no space"):
        await store.fetch(DIGEST, len(DATA), Link())
    monkeypatch.undo()
    assert not await asyncio.to_thread(store.has, DIGEST)
    link = Link()
    assert await fetched(store, link) == DATA
    assert link.asked == [20_000]


async def test_two_that_want_the_same_bring_it_once(store: BlobStore) -> None:
    link = Link()
    both = await asyncio.gather(*(store.fetch(DIGEST, len(DATA), link) for _ in range(2)))
    assert both[0] == both[1]
    assert link.sent == len(DATA)


async def test_every_byte_is_paid_for_first(tmp_path: Path) -> None:
    paid: list[int] = []

    async def pay(count: int) -> None:
        paid.append(count)

    store = BlobStore(tmp_path / "blobs", pay)
    await asyncio.to_thread(store.prepare)
    await fetched(store, Link())
    assert sum(paid) == len(DATA)


async def test_what_rots_is_found_and_removed(store: BlobStore) -> None:
    path = await store.fetch(DIGEST, len(DATA), Link())
    assert await asyncio.to_thread(store.check, DIGEST)
    await asyncio.to_thread(path.write_bytes, DATA[:-1] + b"x")
    assert not await asyncio.to_thread(store.check, DIGEST)
    assert not await asyncio.to_thread(store.has, DIGEST)
    assert not await asyncio.to_thread(store.check, DIGEST)


async def test_what_nobody_needs_any_more_is_removed_when_another_is_claimed(
    store: BlobStore, tmp_path: Path
) -> None:
    first, second, third = (f"sha256:{number}{'0' * 63}" for number in range(3))
    partial = store.path(second).with_name(f"{store.path(second).name}.part")
    for path in (store.path(first), partial, store.path(third)):
        await asyncio.to_thread(path.write_bytes, b"x")
    await asyncio.to_thread(store.claim, "one", [first, second])
    await asyncio.to_thread(store.claim, "two", [first])
    # Another boot knows it, too.
    store = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(store.claim, "one", [third])
    sizes = [await asyncio.to_thread(store.size, one) for one in (first, second, third)]
    assert sizes == [1, 0, 1]
    await asyncio.to_thread(store.collect, ())
    assert not await asyncio.to_thread(os.listdir, tmp_path / "blobs")


async def test_a_claim_that_has_no_room_costs_nothing_else(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(blobs, "replace", full)
    await asyncio.to_thread(store.claim, "one", [DIGEST])
    assert await fetched(store, Link()) == DATA


async def test_a_collection_takes_what_is_not_kept(store: BlobStore) -> None:
    await fetched(store, Link())
    other = f"sha256:{'0' * 64}"
    with pytest.raises(Cut):
        await store.fetch(other, 5_000, Link(data=b"x" * 1_000))
    assert await asyncio.to_thread(store.collect, {DIGEST}) == 1_000
    assert await asyncio.to_thread(store.has, DIGEST)
    assert await asyncio.to_thread(store.collect, ()) == len(DATA)


@pytest.mark.parametrize("text", ["", "sha256:12", "../../etc/passwd", f"sha512:{'0' * 64}"])
def test_what_is_no_digest_is_no_path(store: BlobStore, text: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        store.path(text)
