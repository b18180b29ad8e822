"""Two slots for keys: the new one is proven before the old one goes, whatever the power does."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba_worker import keys
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import Identity, NotEnrolled

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
AUTHORITY = "-----BEGIN CERTIFICATE-----\nnobody reads it\n-----END CERTIFICATE-----\n"


def signed(key: ec.EllipticCurvePrivateKey, day: int, days: int = 30) -> str:
    """A certificate for a key, from a day on."""
    begins = NOW + dt.timedelta(days=day)
    name = x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + dt.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    made = Identity(tmp_path / "tls")
    made.enrolled(signed(made.pending_key(), 0), AUTHORITY)
    return made


def test_without_an_identity_it_is_said_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="hatoba devices add"):
        Identity(tmp_path).current()


def test_a_reply_that_was_lost_makes_no_other_key(tmp_path: Path) -> None:
    one = Identity(tmp_path / "tls")
    first = one.pending_key().public_key()
    assert Identity(tmp_path / "tls").pending_key().public_key() == first
    made = one.enrolled(signed(one.pending_key(), 0), AUTHORITY)
    (kept,) = keys.read_keys(made.path.read_text())
    assert kept.public_key() == first
    assert one.pending_key().public_key() != first
    assert made.path.stat().st_mode & 0o777 == 0o600


def test_a_new_pair_is_proven_before_the_old_one_goes(identity: Identity) -> None:
    old = identity.current()
    new = identity.renewed(signed(identity.pending_key(), 20))
    assert identity.current() == old
    candidate = identity.candidate()
    assert candidate is not None
    assert candidate.path == new.path != old.path
    identity.proven(new)
    assert identity.current() == new
    assert identity.candidate() is None
    assert not old.path.exists()
    third = identity.renewed(signed(identity.pending_key(), 40))
    assert third.slot == old.slot


def test_one_that_is_refused_is_thrown_away(identity: Identity) -> None:
    old = identity.current()
    new = identity.renewed(signed(identity.pending_key(), 20))
    identity.refused(new)
    assert identity.candidate() is None
    identity.refused(old)
    assert identity.current() == old


def test_a_torn_file_leaves_the_other_one(identity: Identity) -> None:
    old = identity.current()
    new = identity.renewed(signed(identity.pending_key(), 20))
    new.path.write_text("-----BEGIN PRIV")
    assert identity.candidate() is None
    assert identity.current() == old
    new = identity.renewed(signed(identity.pending_key(), 20))
    (identity.root / "current").write_text(new.slot)
    new.path.write_text("")
    assert identity.current() == old
    (identity.root / "current").write_text("nonsense")
    assert identity.current() == old


def test_how_long_it_is_good_is_told_by_a_file_that_does_not_note_it(identity: Identity) -> None:
    noted = identity.current()
    line, _, rest = noted.path.read_text().partition("\n")
    assert line == "Good from 2026-11-01T00:00:00+00:00 until 2026-12-01T00:00:00+00:00"
    noted.path.write_text(rest)
    assert identity.current() == noted


def test_a_pair_that_is_none_is_not_used(identity: Identity) -> None:
    path = identity.current().path
    other = keys.key_text(keys.new_key())
    path.write_text(re.sub(r"-----BEGIN PRIVATE.*?KEY-----\n", other, path.read_text(), flags=re.S))
    with pytest.raises(NotEnrolled):
        identity.current()


@pytest.mark.parametrize(("day", "due"), [(0, False), (19, False), (20, True), (400, True)])
def test_it_is_renewed_at_two_thirds_of_its_life(identity: Identity, day: int, due: bool) -> None:
    date = (NOW + dt.timedelta(days=day)).timestamp()
    clock = FloorClock(identity.root / "date", date, lambda: 0.0, lambda: 0.0)
    assert identity.is_due(clock) is due
