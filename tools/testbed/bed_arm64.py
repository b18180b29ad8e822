"""Programs for arm64 on a machine that is none: QEMU, which the kernel starts for them.

What the machine had before stays; a testbed takes back what it did itself. All testbeds of a
machine share the format: one that finds it gone is not healthy, and `up` brings it back.
"""

from __future__ import annotations

from pathlib import Path

from bed_debian import install
from bed_place import Broken, Facts, Place, Unavailable
from bed_processes import run

FORMATS = Path("/proc/sys/fs/binfmt_misc")
FORMAT = "qemu-aarch64"
NO_FORMATS = {"register", "status"}


def prepare() -> None:
    """Have QEMU, and what tells the kernel of it."""
    install("qemu-user-static", "binfmt-support")


def up(place: Place) -> Facts:
    """Have the kernel start QEMU for programs for arm64, in containers too."""
    facts = {"mounted": False, "enabled": False}
    try:
        facts["mounted"] = mount()
        facts["enabled"] = enable()
    except Broken as failure:
        down(place, facts)
        raise Unavailable(f"programs for arm64 cannot run here: {failure}") from None
    return facts


def mount() -> bool:
    """Have the kernel's list of formats; whether it was not there before."""
    if FORMATS.is_mount():
        return False
    run("mount", "-t", "binfmt_misc", "binfmt_misc", FORMATS)
    return True


def enable() -> bool:
    """Have the format in it; whether it was not there before."""
    if (FORMATS / FORMAT).exists():
        if not registered():
            raise Broken(f"{FORMAT} is registered, but is off or has no flag F")
        return False
    run("update-binfmts", "--enable", FORMAT)
    if not registered():
        raise Broken(f"update-binfmts did not register {FORMAT} with flag F")
    return True


def registered() -> bool:
    """Whether the format is on, with its interpreter opened once for all (F).

    Without that flag the interpreter's path is looked up in each container, where there is none.
    """
    try:
        lines = (FORMATS / FORMAT).read_text().splitlines()
    except FileNotFoundError:
        return False
    flags = [line for line in lines if line.startswith("flags:")]
    return "enabled" in lines and any("F" in line for line in flags)


def down(place: Place, facts: Facts) -> None:
    """Undo what `up` did, as far as it is still there."""
    if facts["enabled"] and (FORMATS / FORMAT).exists():
        run("update-binfmts", "--disable", FORMAT)
    # Formats of others would go with the mount.
    if facts["mounted"] and {entry.name for entry in FORMATS.iterdir()} == NO_FORMATS:
        run("umount", FORMATS)


def healthy(facts: Facts) -> bool:
    """Whether the format is registered."""
    return registered()
