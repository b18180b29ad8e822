"""What goes into images comes from the lock."""

from __future__ import annotations

from images import locked

LOCK = """\
# Made by a tool.
aiohttp==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:ba
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:ca
"""


def test_what_has_versions_for_several_pythons_comes_with_all_of_them() -> None:
    known = locked(LOCK)
    assert known.keys() == {"aiohttp", "numpy"}
    assert known["aiohttp"].splitlines()[0] == "aiohttp==3.14.5 \\"
    assert [line for line in known["numpy"].splitlines() if "==" in line] == [
        "numpy==2.4.6 ; python_full_version < '3.12' \\",
        "numpy==2.5.5 ; python_full_version >= '3.12' \\",
    ]
