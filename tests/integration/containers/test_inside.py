"""What a container may, and what it finds."""

from __future__ import annotations

import json

from container_house import ContainerHouse

LOOK = """
id -u
touch /here 2>/dev/null && echo root-written
touch /tmp/here && echo tmp-written
touch $HATOBA_DIR/here 2>/dev/null && echo directory-written
cat /proc/self/status | grep -E 'CapEff|NoNewPrivs'
ls /var/run/docker.sock /run/docker.sock 2>/dev/null
cat $HATOBA_PARAMS
echo "[$TRACEPARENT]"
echo '{"t": 1, "metrics": {"loss": 0.5}, "step": 1}' >> $HATOBA_SPOOL
mkdir -p $HATOBA_CHECKPOINTS/step-7 && echo weights > $HATOBA_CHECKPOINTS/step-7/w
echo '{"t": 2, "checkpoint": {"step": 7, "dir": "step-7", "metrics": {}}}' >> $HATOBA_SPOOL
"""


async def test_least_rights_and_all_that_a_job_needs(house: ContainerHouse) -> None:
    house.secret("token", "canary-5171")
    house.contained(
        house.a,
        LOOK + "\ntest $TOKEN = canary-5171 && echo secret-there",
        secrets=[{"name": "token"}],
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    )
    commit = await house.commit(house.a)
    assert commit.exit_code == 0, commit
    await house.forgotten(house.a)
    lines = house.server.log(house.a).decode().splitlines()
    assert lines[0] not in ("0", "")
    assert "tmp-written" in lines
    assert "secret-there" in lines
    assert not {"root-written", "directory-written"} & set(lines)
    assert "CapEff:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert "{}" in "".join(lines)
    assert any("[00-" + "1" * 32 in line for line in lines)
    (metrics,) = house.heard.all("metrics", house.a)
    assert [(one.key, one.value) for one in metrics.samples] == [("loss", 0.5)]
    assert [one.step for one in house.heard.all("checkpoint", house.a)] == [7]


async def test_limits_are_the_engines(house: ContainerHouse) -> None:
    resources = {"cpus": 0.5, "memory_bytes": 64 << 20}
    house.contained(house.a, "echo up; exec sleep 1000", resources=resources)
    await house.logged(house.a, b"up\n")
    seen = await house.inspect(house.a)
    told = seen["HostConfig"]
    assert (told["NanoCpus"], told["Memory"], told["MemorySwap"]) == (5 * 10**8, 64 << 20, 64 << 20)
    assert told["PidsLimit"] == 4096
    assert (told["ReadonlyRootfs"], told["Privileged"], told["CapDrop"]) == (True, False, ["ALL"])
    assert all("docker" not in mount["Source"] for mount in seen["Mounts"])
    house.server.tell_stop(house.a, 0)
    await house.commit(house.a)


async def test_mounts_of_the_host_are_seen(house: ContainerHouse) -> None:
    shared = house.data.parent / "shared"
    shared.mkdir()
    (shared / "file").write_text("told")
    await house.stop_worker()
    house.settings |= {"mounts": [f"{shared}:/data:ro"]}
    await house.start_worker()
    house.contained(house.a, "cat /data/file; touch /data/x")
    commit = await house.commit(house.a)
    assert commit.exit_code == 1
    await house.forgotten(house.a)
    assert house.server.log(house.a) == b"told"


async def test_a_stop_and_a_wish_to_save_are_seen_inside(house: ContainerHouse) -> None:
    look = "while [ ! -e $HATOBA_DIR/stop ]; do sleep 0.05; done; echo saw; exit 0"
    house.contained(house.a, f"trap '' TERM; echo up; {look}")
    await house.logged(house.a, b"up\n")
    house.server.tell_stop(house.a, 20)
    await house.commit(house.a)
    await house.forgotten(house.a)
    assert house.server.log(house.a) == b"up\nsaw\n"


async def test_the_host_says_that_it_runs_containers(house: ContainerHouse) -> None:
    (hello,) = house.heard.all("hello")
    assert dict(hello.labels) == {"hatoba/engine": "docker"}


async def test_parameters_are_there(house: ContainerHouse) -> None:
    launch = house.launch(house.a, "/bin/cat", "/hatoba/attempt/params.json")
    launch.environment.image = house.image
    launch.params["rate"].number_value = 0.5
    house.server.launch(launch)
    await house.commit(house.a)
    await house.forgotten(house.a)
    assert json.loads(house.server.log(house.a)) == {"rate": 0.5}
