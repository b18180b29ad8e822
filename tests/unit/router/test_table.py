"""Where a request goes, by the table alone."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from hatoba.v1 import deployment_pb2
from hatoba_worker.router.replies import Refusal
from hatoba_worker.router.table import Replica, Route, Table

READER = "projects/default/deployments/reader"
LAB = "projects/lab/deployments/reader"


def message(
    *targets: tuple[int, int, list[str]], deployment: str = READER, **limits: Any
) -> deployment_pb2.Route:
    """A route; targets are (revision, weight, replicas)."""
    made = deployment_pb2.Route(
        deployment=deployment, limits=deployment_pb2.ServingLimits(**limits)
    )
    for revision, weight, names in targets:
        target = made.targets.add(revision=revision, weight=weight)
        target.model_version = f"projects/default/models/digits/versions/{revision}"
        for name in names:
            target.replicas.add(name=name, address=f"127.0.0.1:{len(name) + 1000}")
    return made


def table(*routes: deployment_pb2.Route, **fields: Any) -> Table:
    """A table that was told these, as the whole of it."""
    made = Table()
    made.apply(deployment_pb2.WatchDeploymentsResponse(complete=True, routes=routes, **fields))
    return made


def reader(made: Table) -> Route:
    """Its route."""
    found = made.route("/reader")
    assert found is not None
    return found


def replica(made: Table, name: str) -> Replica:
    """The one of that name."""
    return next(
        one for target in reader(made).targets for one in target.replicas if one.name == name
    )


def pick(route: Route, now: float = 0.0, **fields: Any) -> str:
    """The name of the one that was chosen."""
    return route.pick(now, Random(7), **fields).replica.name


def test_weights_hold_over_many_requests() -> None:
    route = reader(table(message((1, 90, ["a", "b"]), (2, 10, ["c"]))))
    rng = Random(1)
    counted = Counter(route.pick(0.0, rng).replica.name for _ in range(10_000))
    assert 850 < counted["c"] < 1_150
    assert 4_200 < counted["a"] < 4_800


def test_a_revision_without_weight_or_replicas_gets_nothing() -> None:
    route = reader(table(message((1, 0, ["a"]), (2, 50, []), (3, 50, ["c"]))))
    rng = Random(1)
    assert {route.pick(0.0, rng).target.revision for _ in range(100)} == {3}


def test_the_one_with_least_in_flight_is_taken() -> None:
    made = table(message((1, 100, ["a", "b", "c"])))
    replica(made, "a").in_flight = 2
    replica(made, "b").in_flight = 1
    replica(made, "c").in_flight = 3
    assert pick(reader(made)) == "b"


def test_when_all_are_busy_it_says_so_and_others_take_over_before() -> None:
    made = table(message((1, 99, ["a"]), (2, 1, ["b"]), max_queue=2))
    replica(made, "a").in_flight = 2
    assert pick(reader(made)) == "b"
    replica(made, "b").in_flight = 2
    with pytest.raises(Refusal, match="all 2 ready replicas have 2 requests") as caught:
        pick(reader(made))
    assert (caught.value.status, caught.value.retry_after) == (429, 1)


def test_one_that_refuses_rests_longer_each_time_and_is_tried_when_it_is_the_last() -> None:
    made = table(message((1, 100, ["a", "b"])))
    bad = replica(made, "a")
    bad.refused(10.0)
    assert {pick(reader(made), 10.04) for _ in range(9)} == {"b"}
    assert not bad.rests(10.06)
    bad.refused(10.06)
    assert bad.rests(10.15)
    for _ in range(40):
        bad.refused(20.0)
    assert bad.rests(21.9)
    assert not bad.rests(22.1)
    assert pick(reader(made), 20.0, tried=[replica(made, "b")]) == "a"
    bad.connected()
    assert not bad.rests(20.0)


def test_none_is_left_when_all_were_tried() -> None:
    made = table(message((1, 100, ["a"])))
    with pytest.raises(Refusal) as caught:
        pick(reader(made), tried=[replica(made, "a")])
    assert (caught.value.status, caught.value.kind) == (503, "no_replica_ready")


def test_what_a_replica_has_in_flight_outlasts_changes_of_its_route() -> None:
    made = table(message((1, 100, ["a", "b"])))
    kept = replica(made, "a")
    kept.in_flight = 5
    made.apply(deployment_pb2.WatchDeploymentsResponse(routes=[message((1, 50, ["a", "c"]))]))
    assert replica(made, "a") is kept
    assert {one.name for one in reader(made).targets[0].replicas} == {"a", "c"}


def test_projects_have_paths_of_their_own() -> None:
    made = table(message(), message(deployment=LAB))
    found = {path: made.route(path) for path in ("/reader", "/p/default/reader", "/p/lab/reader")}
    assert {path: one and one.deployment for path, one in found.items()} == {
        "/reader": READER,
        "/p/default/reader": READER,
        "/p/lab/reader": LAB,
    }
    assert made.route("/p/none/reader") is None


def test_a_whole_table_takes_away_what_is_not_in_it_and_a_change_does_not() -> None:
    made = table(message(), message(deployment=LAB), cursor=5)
    change = deployment_pb2.WatchDeploymentsResponse(cursor=6, removed=[LAB])
    assert made.apply(change) == [LAB]
    assert (made.cursor, len(made.routes)) == (6, 1)
    made.apply(deployment_pb2.WatchDeploymentsResponse(cursor=7, routes=[message(deployment=LAB)]))
    assert len(made.routes) == 2
    whole = deployment_pb2.WatchDeploymentsResponse(cursor=8, complete=True, routes=[message()])
    assert made.apply(whole) == [LAB]
    assert made.route("/p/lab/reader") is None


def test_a_token_opens_until_its_end() -> None:
    access = deployment_pb2.Access(sha256="aa", deployment=READER, principal="app")
    access.expire_time.FromSeconds(1_000)
    forever = deployment_pb2.Access(sha256="bb", principal="ann")
    made = table(access=[access, forever], access_changed=True)
    found = made.caller("aa", 999.9)
    assert found is not None
    assert (found.deployment, found.principal) == (READER, "app")
    assert made.caller("aa", 1_000.0) is None
    assert made.caller("bb", 1e12) is not None
    assert made.caller("cc", 0.0) is None
    made.apply(deployment_pb2.WatchDeploymentsResponse(cursor=1))
    assert made.caller("bb", 0.0) is not None


def test_the_kept_table_is_the_same_table() -> None:
    made = table(message((4, 100, ["a"]), max_queue=3, max_body_bytes=10), cursor=9)
    again = Table()
    again.apply(
        deployment_pb2.WatchDeploymentsResponse.FromString(made.message().SerializeToString())
    )
    route = reader(again)
    assert (again.cursor, route.limits.max_queue, route.limits.max_body) == (9, 3, 10)
    assert route.targets[0].model == "digits:4"
    assert route.targets[0].replicas[0].address == "127.0.0.1:1001"


def test_limits_have_defaults() -> None:
    limits = reader(table(message())).limits
    assert (limits.max_body, limits.max_queue, limits.timeout) == (16 << 20, 64, 60.0)


def test_a_replica_that_is_gone_is_back_when_it_is_named_again() -> None:
    made = table(message((1, 100, ["a", "bb"])))
    replica(made, "a").gone = True
    assert {pick(reader(made)) for _ in range(20)} == {"bb"}
    replica(made, "bb").gone = True
    with pytest.raises(Refusal) as refused:
        pick(reader(made))
    assert refused.value.kind == "no_replica_ready"
    again = deployment_pb2.WatchDeploymentsResponse(routes=[message((1, 100, ["a"]))])
    made.apply(again)
    assert pick(reader(made)) == "a"
