"""A network as devices have it: this machine on one side, a NAT router, and devices behind it.

    this machine --- router (translates addresses) --- a switch --- devices

Each device is in a network namespace of its own and reaches nothing but the router; nobody reaches
a device. Links can be cut, the router can forget whom it translated and take another address, and
every byte of a device's link is counted by the kernel. Nothing of it is left at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import bed_groups
from bed_debian import install
from bed_place import Unavailable
from bed_processes import run

PREFIX = "hatoba-edge-"
# Two networks must not choose the same addresses.
ONE_CHOOSES = "/run/hatoba-edge.lock"
# Addresses of providers, which home networks do not use.
SUBNETS = [f"100.{second}.{third}.0/28" for second in range(96, 112) for third in range(256)]
INSIDE = "192.168.83"
_NUMBERS = itertools.count()


class Carried(NamedTuple):
    """Bytes of a link as they were on it, headers included."""

    up: int
    down: int


def prepare() -> None:
    """Have the programs, and clear away what one that was killed has left; Unavailable where there
    is no root.
    """
    if os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    bed_groups.tracked()
    install("iproute2", "iptables")
    sweep()


def sweep() -> None:
    """Remove the namespaces and control groups of processes that are no more."""
    for space in json.loads(run("ip", "-json", "netns") or "[]"):
        if is_left(space["name"]):
            run("ip", "netns", "delete", space["name"], check=False)
    for group in {folder.name for folder in bed_groups.TOP.glob(f"*/{PREFIX}*")}:
        if is_left(group):
            bed_groups.empty(f"/{group}")


def is_left(name: str) -> bool:
    """Whether what has this name was made by a process that is no more."""
    own = name.removeprefix(PREFIX).partition("-")[0]
    ours = name.startswith(PREFIX) and own.isdecimal()
    return ours and not Path(f"/proc/{own}").exists()


@dataclass
class EdgeNetwork:
    """`address` is this machine's, where devices find a server; `tag` names what is ours."""

    tag: str
    subnet: ipaddress.IPv4Network
    devices: list[EdgeLink] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _turn: int = 0

    @property
    def address(self) -> str:
        """This machine's."""
        return str(self.subnet[1])

    @property
    def router(self) -> str:
        """The router's namespace."""
        return f"{PREFIX}{self.tag}-router"

    @property
    def outside(self) -> str:
        """The router's address now, which is what a server sees of every device."""
        return str(self.subnet[2 + self._turn])

    @property
    def _own(self) -> str:
        """This machine's end of the wire to the router."""
        return f"hbe{self.tag}"

    def rebind(self) -> None:
        """The router gets another address and forgets whom it translated: what it is told for
        connections that there are goes out as something new, which nobody knows.
        """
        run("ip", "-n", self.router, "address", "delete", f"{self.outside}/28", "dev", "wan")
        self._turn = 1 - self._turn
        run("ip", "-n", self.router, "address", "add", f"{self.outside}/28", "dev", "wan")
        run("ip", "-n", self.router, "route", "replace", "default", "via", self.address)

    def count(self, port: int) -> None:
        """Count from now on what this machine sends to devices from a port."""
        self._iptables("-I", "FORWARD", *self._sent_from(port))

    def counted(self, port: int) -> int:
        """Bytes that were counted of a port, headers included."""
        listed = self._iptables("-S", "FORWARD", "-v")
        (line,) = (one for one in listed.splitlines() if f" --sport {port} " in one)
        return int(line.split()[-1])

    def second_address(self) -> str:
        """One more of this machine's."""
        address = str(self.subnet[4])
        run("ip", "address", "add", f"{address}/28", "dev", self._own)
        return address

    def let_out_only(self, port: int) -> None:
        """Devices reach this TCP port from now on, wherever it is, and nothing else."""
        lets_out = ["-p", "tcp", "--dport", str(port), "-j", "ACCEPT"]
        for rule in (lets_out, ["-j", "DROP"]):
            self._iptables("-A", "FORWARD", "-i", "lan", *rule)

    def kept_in(self) -> int:
        """Packets that devices sent elsewhere since then."""
        listed = self._iptables("-S", "FORWARD", "-v")
        (line,) = (one for one in listed.splitlines() if "-i lan" in one and one.endswith("DROP"))
        packets, _ = line.partition(" -c ")[2].split()[:2]
        return int(packets)

    def _sent_from(self, port: int) -> list[str]:
        return ["-i", "wan", "-s", self.address, "-p", "tcp", "--sport", str(port)]

    def _iptables(self, *rule: str) -> str:
        return run(*_entered(self.router), "iptables", "-w", *rule)

    def _up(self) -> None:
        run("ip", "netns", "add", self.router)
        router, own = ["ip", "-n", self.router], self._own
        run("ip", "link", "add", own, "type", "veth", "peer", "name", "wan", "netns", self.router)
        run("ip", "address", "add", f"{self.address}/28", "dev", own)
        run("ip", "link", "set", own, "up")
        run(*router, "link", "add", "lan", "type", "bridge")
        for device, address in (("wan", f"{self.outside}/28"), ("lan", f"{INSIDE}.1/24")):
            run(*router, "address", "add", address, "dev", device)
            run(*router, "link", "set", device, "up")
        run(*router, "route", "add", "default", "via", self.address)
        run(*_entered(self.router), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._iptables("-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
        known = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
        self._iptables("-A", "FORWARD", "-i", "wan", *known, "-j", "ACCEPT")
        self._iptables("-A", "FORWARD", "-i", "wan", "-j", "DROP")

    def add(self, name: str) -> EdgeLink:
        """One more device's link."""
        number = next(self._numbers)
        link = EdgeLink(self.router, f"{PREFIX}{self.tag}-{name}", f"port{number}")
        self.devices.append(link)
        inside = ["ip", "-n", link.space]
        run("ip", "netns", "add", link.space)
        run(
            *("ip", "-n", self.router, "link", "add", link.port, "type", "veth"),
            *("peer", "name", "eth0", "netns", link.space),
        )
        run("ip", "-n", self.router, "link", "set", link.port, "master", "lan", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "address", "add", f"{INSIDE}.{number + 1}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", f"{INSIDE}.1")
        return link

    def _down(self) -> None:
        for space in (*(one.space for one in self.devices), self.router):
            run("ip", "netns", "delete", space, check=False)
        run("ip", "link", "delete", self._own, check=False)


@dataclass(frozen=True)
class EdgeLink:
    """One device's wire to the switch; `space` is the device's network namespace."""

    router: str
    space: str
    port: str

    def cut(self) -> None:
        """The wire is pulled: nothing passes, and nobody is told."""
        run("ip", "-n", self.router, "link", "set", self.port, "down")

    def mend(self) -> None:
        """It is plugged in again."""
        run("ip", "-n", self.router, "link", "set", self.port, "up")

    def carried(self) -> Carried:
        """What has passed since it was made."""
        told = json.loads(run("ip", "-n", self.router, "-s", "-json", "link", "show", self.port))
        counts = told[0]["stats64"]
        return Carried(up=counts["rx"]["bytes"], down=counts["tx"]["bytes"])

    def slow(self, bits: int) -> None:
        """So many bits a second pass to the device from now on; 0: as many as can."""
        rate = ["root", "tbf", "rate", f"{bits}bit", "burst", "32kbit", "latency", "300ms"]
        how = ["replace", "dev", self.port, *rate] if bits else ["del", "dev", self.port, "root"]
        run(*_entered(self.router), "tc", "qdisc", *how)

    @property
    def entered(self) -> list[str]:
        """What comes before a command that runs on the device's network."""
        return _entered(self.space)


def _entered(space: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{space}"]


@contextmanager
def edge_network(names: Sequence[str] = ()) -> Iterator[EdgeNetwork]:
    """The network, with links of these names; blocks."""
    with ExitStack() as stack:
        with _alone():
            network = EdgeNetwork(f"{os.getpid()}-{next(_NUMBERS)}", _free_subnet())
            stack.callback(network._down)
            network._up()
        for name in names:
            network.add(name)
        yield network


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with open(ONE_CHOOSES, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _free_subnet() -> ipaddress.IPv4Network:
    """A network that no route of this machine leads to."""
    routes = json.loads(run("ip", "-json", "-4", "route") or "[]")
    known = [ipaddress.ip_network(one["dst"]) for one in routes if one["dst"] != "default"]
    candidates = map(ipaddress.IPv4Network, SUBNETS)
    return next(one for one in candidates if not any(one.overlaps(other) for other in known))
