"""Logs: whole, in order, bounded."""

from __future__ import annotations

import sys

from waiting import until
from worker_house import House

LIMIT = 1 << 20


async def test_a_large_log_arrives_whole_and_the_worker_stays_small(house: House) -> None:
    code = "import sys\nfor n in range(100000): sys.stdout.write(f'{n:0399d}\\n')"
    before = await house.worker_memory()
    house.run("a-1", sys.executable, "-c", code)
    commit = await house.commit("a-1")
    assert commit.log_sizes["stdout"] == 40_000_000
    await house.forgotten("a-1")
    data = house.server.log("a-1")
    assert len(data) == 40_000_000
    assert data.endswith(b"%0399d\n" % 99_999)
    assert [int(line) for line in data.splitlines()[::9973]] == list(range(0, 100_000, 9973))
    assert await house.worker_memory() - before < 24 << 20


async def test_what_is_over_the_limit_is_dropped_at_the_oldest_end_and_named(house: House) -> None:
    await house.kill_worker()
    house.settings["log_limit_bytes"] = LIMIT
    await house.start_worker()
    house.server.hold_logs.clear()
    wait = "while ! test -e ../../../gate; do sleep 0.01; done"
    script = f"yes 0123456789abcde | head -c 4194304; {wait}; echo end"
    house.shell("a-1", script)
    path = house.home("a-1") / "stdout.log"
    await until(
        lambda: path.exists() and path.stat().st_blocks * 512 <= LIMIT < path.stat().st_size
    )
    (house.data / "gate").touch()
    await house.commit("a-1")
    house.server.hold_logs.set()
    await house.forgotten("a-1")
    log = house.server.logs["a-1", "stdout"]
    assert len(log.data) == 4_194_304 + 4
    assert log.data.endswith(b"0123456789abcde\nend\n")
    assert sum(length for _, length in log.gaps) > 2 << 20
    whole = bytearray(b"0123456789abcde\n" * 262_144 + b"end\n")
    for start, length in log.gaps:
        whole[start : start + length] = log.data[start : start + length]
    assert log.data == whole


async def test_what_is_acknowledged_may_be_dropped_without_a_gap(house: House) -> None:
    await house.kill_worker()
    house.settings["log_limit_bytes"] = LIMIT
    await house.start_worker()
    script = "for i in 1 2 3 4 5 6 7 8; do yes 0123456789abcde | head -c 524288; sleep 0.2; done"
    house.shell("a-1", script)
    await house.commit("a-1")
    await house.forgotten("a-1")
    log = house.server.logs["a-1", "stdout"]
    assert log.gaps == []
    assert bytes(log.data) == b"0123456789abcde\n" * (8 * 32_768)


async def test_a_server_that_wants_no_more_of_a_log_holds_nothing_up(house: House) -> None:
    house.server.refuse_logs.add("a-1")
    house.shell("a-1", "echo x")
    await house.commit("a-1")
    await house.forgotten("a-1")


async def test_a_log_grows_while_the_job_runs(house: House) -> None:
    house.shell("a-1", "echo one; while ! test -e ../../../gate; do sleep 0.01; done; echo two")
    await house.logged("a-1", b"one\n")
    assert house.heard.all("commit", "a-1") == []
    (house.data / "gate").touch()
    await house.logged("a-1", b"one\ntwo\n")


async def test_the_log_of_what_ended_is_shipped_though_the_server_wants_no_more_of_it(
    house: House,
) -> None:
    house.server.silent.add("commit")
    house.server.hold_logs.clear()
    house.shell("a-1", "seq 1000000; exit 3")
    commit = await house.commit("a-1")
    # As after a restart of a server that had stored the end and not answered.
    house.server.drop("a-1")
    house.server.hold_logs.set()
    await house.forgotten("a-1")
    assert len(house.server.log("a-1")) == dict(commit.log_sizes)["stdout"] == 6_888_896
