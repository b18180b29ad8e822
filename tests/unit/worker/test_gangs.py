"""What a gang's member keeps free, and what it is told of the others."""

from __future__ import annotations

import socket

import pytest

from hatoba.job_context import JobContext
from hatoba_worker.attempts import GangPlace
from hatoba_worker.gang_ports import GangPorts
from hatoba_worker.staging import gang_environment


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_a_members_port_is_its_own_until_it_begins() -> None:
    ports = GangPorts("127.0.0.1")
    one, two = ports.address_of("a-0-1"), ports.address_of("a-1-1")
    assert one != two
    assert ports.address_of("a-0-1") == one
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port_of(one)))
    ports.free("a-0-1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port_of(one)))
    ports.free("a-1-1")
    ports.free("a-1-1")


def test_an_address_with_colons_is_bracketed() -> None:
    ports = GangPorts("::1")
    address = ports.address_of("a-0-1")
    assert address.startswith("[::1]:")
    ports.free("a-0-1")
    env = gang_environment(GangPlace(0, 1, (address, "[::2]:9")))
    assert env["MASTER_ADDR"] == "::1"


def test_a_member_knows_all_by_rank() -> None:
    env = gang_environment(GangPlace(1, 3, ("h0:1000", "h1:1001")))
    assert env == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "h0",
        "MASTER_PORT": "1000",
        "HATOBA_GANG_RANK": "1",
        "HATOBA_GANG_SIZE": "2",
        "HATOBA_GANG_GENERATION": "3",
        "HATOBA_GANG_ADDRESSES": "h0:1000,h1:1001",
    }
    gang = JobContext.from_environment({"HATOBA_ATTEMPT": "a-1-1", **env}).gang
    assert gang is not None
    assert (gang.rank, gang.size, gang.generation) == (1, 2, 3)
    assert gang.addresses == ("h0:1000", "h1:1001")
    assert gang.leader == "h0:1000"


def test_who_has_no_gang_is_told_nothing() -> None:
    assert gang_environment(None) == {}
    assert JobContext.from_environment({"HATOBA_ATTEMPT": "a-1-1"}).gang is None
