"""Which programs of a tree a machine can do nothing with."""

from __future__ import annotations

import pytest

from hatoba_worker.agent import elf

GNU = "linux-gnu.so"


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ({"a.so": "amd64", "run.sh": ""}, None),
        ({"a.so": "arm64"}, "a.so"),
        ({"lib/b.so": "amd64", "lib/a.so.1.2": "elf-21"}, "lib/a.so.1.2"),
        # Of a wheel for each machine ours is loaded.
        ({f"_n.cpython-311-x86_64-{GNU}": "amd64", f"_n.cpython-311-aarch64-{GNU}": "arm64"}, None),
        ({f"n.cpython-311-armv7l-{GNU}": "arm", "m.so": "amd64"}, f"n.cpython-311-armv7l-{GNU}"),
        ({"arm64/libtf.so": "arm64", "amd64/libtf.so": "amd64"}, None),
        ({"libtf-arm64.so": "arm64", "libtf_x86_64.so.2": "amd64"}, None),
        ({"bin/tool-linux-arm64": "arm64", "bin/tool-linux-amd64": "amd64"}, None),
        ({"libcharm.so": "amd64", "libch.so": "arm64"}, "libch.so"),
        # The kernel starts these, and no program of ours can load them.
        ({"bin/tool": "386"}, None),
        ({"tool.so": "386"}, "tool.so"),
    ],
)  # fmt: skip
def test_what_is_for_other_machines_alone_is_found(made: dict[str, str], found: str | None) -> None:
    assert elf.first_foreign(made, "amd64") == found


@pytest.mark.parametrize("name", ["a.so", "dir/lib_x.so.1", "_n.cpython-311-x86_64-linux-gnu.so"])
def test_a_library_is_known_by_its_name(name: str) -> None:
    assert elf.is_library(name)


@pytest.mark.parametrize("name", ["weights.soup", "firmware.elf", "so", "a.so.bak"])
def test_what_is_called_otherwise_is_none(name: str) -> None:
    assert not elf.is_library(name)
