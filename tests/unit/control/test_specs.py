"""Specifications in memory, bounded, and read again when they fell out."""

from __future__ import annotations

from memory_store import MemoryStore

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.specs import SpecCache


def spec(name: str) -> bytes:
    return job_pb2.JobSpec(name=name).SerializeToString()


async def test_what_was_put_is_not_read_again() -> None:
    store = MemoryStore()
    cache = SpecCache(store.as_store())
    cache.put("a", spec("one"))
    assert (await cache.get(["a"]))["a"].name == "one"
    assert store.reads == 0


async def test_what_was_dropped_or_never_put_is_read() -> None:
    store = MemoryStore(kept_specs={"a": spec("one")})
    cache = SpecCache(store.as_store())
    cache.put("a", spec("one"))
    cache.drop("a")
    cache.drop("unknown")
    found = await cache.get(["a", "none"])
    assert {uid: one.name for uid, one in found.items()} == {"a": "one"}
    await cache.get(["a"])
    assert store.reads == 1


async def test_more_than_it_holds_is_answered_all_the_same() -> None:
    names = {f"job-{n}": spec(f"name-{n}") for n in range(10)}
    store = MemoryStore(kept_specs=names)
    cache = SpecCache(store.as_store(), limit=20)
    found = await cache.get(list(names))
    assert {uid: one.name for uid, one in found.items()} == {
        f"job-{n}": f"name-{n}" for n in range(10)
    }


async def test_the_oldest_falls_out() -> None:
    store = MemoryStore()
    cache = SpecCache(store.as_store(), limit=2 * len(spec("one")))
    for uid in ("a", "b", "c"):
        cache.put(uid, spec("one"))
    assert set(await cache.get(["b", "c"])) == {"b", "c"}
    assert store.reads == 0
    assert set(await cache.get(["a"])) == set()
