"""The bridge that containers, emulators and nodes share, and the firewall's rules for it.

Its gateway address is where containers and pods find servers of this machine. Nothing outside
reaches the bridge's addresses; containers reach the outside behind this machine's address.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
from pathlib import Path

from bed_debian import install
from bed_place import Facts, Place, Unavailable
from bed_processes import run

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# Two testbeds must not choose the same addresses.
ONE_CHOOSES = "/run/hatoba-network.lock"
# What the first testbed found; the last one leaves it so.
FORWARDED_BEFORE = Path("/run/hatoba-forward")
# The lower half are the bridge's own addresses, the upper half those of pods.
SUBNETS = [f"10.{second}.0.0/19" for second in range(213, 250)]


def prepare() -> None:
    """Have the programs; Unavailable where there is no root."""
    if os.geteuid() != 0:
        raise Unavailable("the testbed's components need root")
    install("iproute2", "iptables")


def up(place: Place) -> Facts:
    """Make bridge and rules; answers their names and addresses."""
    with open(ONE_CHOOSES, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        return make(place, free_subnet())


def make(place: Place, everything: ipaddress.IPv4Network) -> Facts:
    """Bridge and rules with these addresses."""
    own, pods = everything.subnets()
    gateway, bridge = str(own.network_address + 1), f"hatoba-{place.tag}"
    facts = {
        "bridge": bridge,
        "subnet": str(own),
        "containers": str(next(own.subnets())),
        "pods": str(pods),
        "everything": str(everything),
        "gateway": gateway,
    }
    run("ip", "link", "add", bridge, "type", "bridge")
    run("ip", "address", "add", f"{gateway}/{own.prefixlen}", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    for table, chain, rule in rules(facts):
        run("iptables", "-w", "-t", table, "-I", chain, *rule)
    if not FORWARDED_BEFORE.exists():
        FORWARDED_BEFORE.write_text(FORWARD.read_text())
    FORWARD.write_text("1")
    return facts


def down(place: Place, facts: Facts) -> None:
    """Remove both; what is gone already is no error."""
    for table, chain, rule in rules(facts):
        run("iptables", "-w", "-t", table, "-D", chain, *rule, check=False)
    run("ip", "link", "delete", facts["bridge"], check=False)
    if not any(name.startswith("hatoba-") for name in links()) and FORWARDED_BEFORE.exists():
        FORWARD.write_text(FORWARDED_BEFORE.read_text())
        FORWARDED_BEFORE.unlink()


def sweep(place: Place) -> None:
    """Remove what a testbed has left of networks, whether anybody remembers it or not."""
    bridge = f"hatoba-{place.tag}"
    for table in ("filter", "nat"):
        listed = run("iptables", "-w", "-t", table, "-S", check=False)
        for rule in (line.split() for line in listed.splitlines() if bridge in line):
            run("iptables", "-w", "-t", table, "-D", *rule[1:], check=False)
    for space in json.loads(run("ip", "-json", "netns") or "[]"):
        if space["name"].startswith(bridge):
            run("ip", "netns", "delete", space["name"], check=False)
    if bridge in links():
        run("ip", "link", "delete", bridge)


def healthy(facts: Facts) -> bool:
    """Whether the bridge is there."""
    return facts["bridge"] in links()


def rules(facts: Facts) -> list[tuple[str, str, list[str]]]:
    """Table, chain and match of each rule, for the chain's beginning, last one first."""
    bridge, everything = facts["bridge"], facts["everything"]
    mine = ["-m", "comment", "--comment", bridge]
    answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
    return [
        ("filter", "INPUT", ["-d", everything, *mine, "-j", "DROP"]),
        ("filter", "INPUT", ["-d", everything, "-i", "lo", *mine, "-j", "ACCEPT"]),
        ("filter", "INPUT", ["-i", bridge, *mine, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-o", bridge, *mine, "-j", "DROP"]),
        ("filter", "FORWARD", ["-o", bridge, *answers, *mine, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-i", bridge, *mine, "-j", "ACCEPT"]),
        ("nat", "POSTROUTING", ["-s", everything, "!", "-o", bridge, *mine, "-j", "MASQUERADE"]),
    ]


def links() -> list[str]:
    """The names of this machine's network devices."""
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link") or "[]")]


def free_subnet() -> ipaddress.IPv4Network:
    """A private network that no route of this machine leads to."""
    routes = json.loads(run("ip", "-json", "-4", "route") or "[]")
    known = [ipaddress.ip_network(one["dst"]) for one in routes if one["dst"] != "default"]
    candidates = map(ipaddress.IPv4Network, SUBNETS)
    return next(one for one in candidates if not any(one.overlaps(other) for other in known))


def node_up(place: Place, network: Facts, number: int) -> Facts:
    """A network namespace on the bridge for node `number` (from 1), with addresses for its pods."""
    name, peer = f"hatoba-{place.tag}-{number}", f"h{place.tag}n{number}"
    own, pods = (ipaddress.ip_network(network[key]) for key in ("subnet", "pods"))
    address = str(own.broadcast_address - number)
    podded = f"{pods.network_address + 256 * number}/24"
    run("ip", "netns", "add", name)
    run("ip", "link", "add", peer, "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "link", "set", peer, "master", network["bridge"], "up")
    inside = ["ip", "-n", name]
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "address", "add", f"{address}/{own.prefixlen}", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "route", "add", "default", "via", network["gateway"])
    run("ip", "route", "add", podded, "via", address, "dev", network["bridge"])
    entered = ["nsenter", f"--net=/run/netns/{name}"]
    run(*entered, "sh", "-c", f"echo 1 >{FORWARD}")
    return {
        "namespace": name,
        "address": address,
        "pods": podded,
        "gateway": network["gateway"],
        "enter": entered,
    }


def node_down(facts: Facts) -> None:
    """Remove a node's namespace with all that is in it, and the way to its pods."""
    run("ip", "route", "delete", facts["pods"], check=False)
    run("ip", "netns", "delete", facts["namespace"], check=False)
