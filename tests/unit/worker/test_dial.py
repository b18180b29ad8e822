"""Where a worker dials, and whether it speaks TLS there."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_worker.dial import Locator


@pytest.mark.parametrize(
    ("server", "with_ca", "tls"),
    [
        ("127.0.0.1:7420", False, False),
        ("localhost:7420", True, True),
        ("hatoba.example.org:7420", False, True),
    ],
)
def test_an_authority_means_tls_on_loopback_too(
    server: str, with_ca: bool, tls: bool, tmp_path: Path
) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    token.touch(0o600)
    token.write_text("hb_0123456789ab_secret\n")
    ca.write_bytes(b"PEM")
    found = Locator(tmp_path / "data", server, token, str(ca) if with_ca else "").find()
    assert (found.tls, found.ca) == (tls, b"PEM" if with_ca else None)


def test_a_socket_is_dialled_in_plain_text_with_what_its_other_end_proves(tmp_path: Path) -> None:
    way = f"unix:{tmp_path}/tunnel.sock"
    found = Locator(tmp_path, way, tmp_path / "none", "", lambda: "dc_cam-1").find()
    assert (found.address, found.tls, found.proof()) == (way, False, "dc_cam-1")
