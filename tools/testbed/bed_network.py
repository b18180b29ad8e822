"""The bridge that containers and emulators share, and the firewall's rules for it.

Its gateway address is where containers find servers of this machine. Nothing outside reaches the
bridge's addresses; containers reach the outside behind this machine's address.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from bed_place import Facts, Place
from bed_processes import run

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
SUBNETS = [f"10.{second}.0.0/20" for second in range(213, 250)]


def up(place: Place) -> Facts:
    """Make bridge and rules; answers their names and addresses."""
    subnet = free_subnet()
    gateway = str(subnet.network_address + 1)
    bridge = f"hatoba-{place.tag}"
    forward = FORWARD.read_text().strip()
    run("ip", "link", "add", bridge, "type", "bridge")
    run("ip", "address", "add", f"{gateway}/{subnet.prefixlen}", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    facts = {"bridge": bridge, "subnet": str(subnet), "gateway": gateway, "forward": forward}
    for table, chain, rule in rules(facts):
        run("iptables", "-w", "-t", table, "-I", chain, *rule)
    FORWARD.write_text("1")
    return facts


def down(facts: Facts) -> None:
    """Remove both; what is gone already is no error."""
    for table, chain, rule in rules(facts):
        run("iptables", "-w", "-t", table, "-D", chain, *rule, check=False)
    run("ip", "link", "delete", facts["bridge"], check=False)
    if not any(name.startswith("hatoba-") for name in links()):
        FORWARD.write_text(facts["forward"])


def healthy(facts: Facts) -> bool:
    """Whether the bridge is there."""
    return facts["bridge"] in links()


def rules(facts: Facts) -> list[tuple[str, str, list[str]]]:
    """Table, chain and match of each rule, for the chain's beginning, last one first."""
    bridge, subnet = facts["bridge"], facts["subnet"]
    mine = ["-m", "comment", "--comment", bridge]
    answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
    return [
        ("filter", "INPUT", ["-d", subnet, *mine, "-j", "DROP"]),
        ("filter", "INPUT", ["-d", subnet, "-i", "lo", *mine, "-j", "ACCEPT"]),
        ("filter", "INPUT", ["-i", bridge, *mine, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-o", bridge, *mine, "-j", "DROP"]),
        ("filter", "FORWARD", ["-o", bridge, *answers, *mine, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-i", bridge, *mine, "-j", "ACCEPT"]),
        ("nat", "POSTROUTING", ["-s", subnet, "!", "-o", bridge, *mine, "-j", "MASQUERADE"]),
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
