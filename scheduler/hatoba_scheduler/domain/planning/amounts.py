"""Amounts of resources as whole numbers, so that sums leave nothing behind and compare fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hatoba_scheduler.domain.records import Resources

Named = tuple[tuple[str, int], ...]
Vector = tuple[int, int, int, int, Named]
"""Millionths of cores, bytes, whole GPUs, slots, and named things, sorted by name without zeros."""

NOTHING: Vector = (0, 0, 0, 0, ())
_MILLION = 1_000_000
_NOMINAL = (1000 * _MILLION, 1 << 42, 100, 1000)


def vector(amount: Resources) -> Vector:
    """The same amount in whole numbers."""
    cpus = round(amount.cpus * _MILLION)
    return (cpus, amount.memory, amount.gpus, amount.slots, amount.named)


def resources(amount: Vector) -> Resources:
    """The same amount as people know it; what is below nothing is nothing."""
    cpus, memory, gpus, slots, named = amount
    shown = tuple(item for item in named if item[1] > 0)
    return Resources(max(0, cpus) / _MILLION, max(0, memory), max(0, gpus), max(0, slots), shown)


def plus(one: Vector, other: Vector) -> Vector:
    """Both together."""
    named = _merged(one[4], other[4], 1) if other[4] else one[4]
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3], named)


def minus(one: Vector, other: Vector) -> Vector:
    """One without the other; it may be below nothing."""
    named = _merged(one[4], other[4], -1) if other[4] else one[4]
    return (one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3], named)


def left(total: Vector, used: Vector) -> Vector:
    """What is free of a total; never below nothing, though a shrunken pool may be overfull."""
    a, b, c, d, named = minus(total, used)
    if named and used[4]:
        named = tuple(item for item in named if item[1] > 0)
    return (max(0, a), max(0, b), max(0, c), max(0, d), named)


def times(amount: Vector, count: int) -> Vector:
    """So many of it."""
    named = tuple((name, many * count) for name, many in amount[4])
    return (amount[0] * count, amount[1] * count, amount[2] * count, amount[3] * count, named)


def total_of(amounts: Iterable[Vector]) -> Vector:
    """All together."""
    whole = NOTHING
    for amount in amounts:
        whole = plus(whole, amount)
    return whole


def within(one: Vector, other: Vector) -> bool:
    """Whether one is no more than the other, in everything."""
    return (
        one[0] <= other[0]
        and one[1] <= other[1]
        and one[2] <= other[2]
        and one[3] <= other[3]
        and (not one[4] or _named_within(one[4], other[4]))
    )


def beside(one: Vector, kept: Vector, free: Vector) -> bool:
    """Whether one fits into what is free and leaves what is kept, in everything that it takes."""
    return all(
        amount <= 0 or amount + reserved <= room
        for amount, reserved, room in _rows(one, kept, free)
    )


def limited(used: Vector, limit: Vector) -> bool:
    """Whether what is used keeps to a limit in which 0 and what is not named are no limit."""
    return (
        (not limit[0] or used[0] <= limit[0])
        and (not limit[1] or used[1] <= limit[1])
        and (not limit[2] or used[2] <= limit[2])
        and (not limit[3] or used[3] <= limit[3])
        and (not limit[4] or _named_limited(used[4], limit[4]))
    )


def share(used: Vector, total: Vector) -> float:
    """The largest part of a total that is used, over all resources (the dominant share).

    What no total is known of is measured against a nominal one, so that it still compares.
    """
    largest = max(
        used[0] / (total[0] or _NOMINAL[0]),
        used[1] / (total[1] or _NOMINAL[1]),
        used[2] / (total[2] or _NOMINAL[2]),
        used[3] / (total[3] or _NOMINAL[3]),
    )
    if used[4]:
        whole = dict(total[4])
        parts = (amount / (whole.get(name, 0) or _NOMINAL[3]) for name, amount in used[4])
        largest = max(largest, *parts)
    return largest


def count_in(one: Vector, room: Vector, most: int) -> int:
    """How many of one fit into a room, at most so many."""
    count = most
    for wanted, free in zip(one[:4], room[:4], strict=True):
        if wanted > 0:
            count = min(count, free // wanted)
    if one[4]:
        have = dict(room[4])
        for name, amount in one[4]:
            count = min(count, have.get(name, 0) // amount)
    return max(0, count)


def _rows(*amounts: Vector) -> Iterator[tuple[int, ...]]:
    yield from zip(*(amount[:4] for amount in amounts), strict=True)
    named = [dict(amount[4]) for amount in amounts]
    for name in named[0]:
        yield tuple(one.get(name, 0) for one in named)


def _merged(one: Named, other: Named, sign: int) -> Named:
    amounts = dict(one)
    for name, amount in other:
        amounts[name] = amounts.get(name, 0) + sign * amount
    return tuple(sorted(item for item in amounts.items() if item[1]))


def _named_within(one: Named, other: Named) -> bool:
    have = dict(other)
    return all(amount <= have.get(name, 0) for name, amount in one)


def _named_limited(used: Named, limit: Named) -> bool:
    have = dict(used)
    return all(have.get(name, 0) <= amount for name, amount in limit)
