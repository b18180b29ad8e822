"""Tokens, who holds them, and the files they are kept in."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from hatoba_scheduler.auth import (
    Authenticator,
    InsecureFile,
    Role,
    ensure_token_files,
    mint,
    read_secret,
    token_id,
    write_secret,
)
from hatoba_scheduler.auth.tokens import digest
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import NotFound, Reason, Unauthenticated

NOW = 1_800_000_000_000_000


class Rows:
    """A token store in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, TokenRecord] = {}

    async def tokens(self) -> list[TokenRecord]:
        return list(self.rows.values())

    async def put_token(self, token: TokenRecord) -> None:
        self.rows[token.id] = token


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def authenticator(rows: Rows) -> Authenticator:
    return Authenticator(rows, lambda: NOW)


def _reason(authenticator: Authenticator, header: str | None) -> Reason:
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(header)
    return caught.value.reason


def test_a_tokens_text_holds_its_id() -> None:
    identity, text = mint()
    assert text.startswith(f"hb_{identity}_")
    assert token_id(text) == identity
    assert mint()[1] != text


@pytest.mark.parametrize("text", ["", "hb_", "hb_zz_x", "HB_0_1", f"hb_{'0' * 12}_{'A' * 31}"])
def test_other_texts_are_no_tokens(text: str) -> None:
    assert token_id(text) is None


async def test_the_text_itself_is_never_stored(authenticator: Authenticator, rows: Rows) -> None:
    record, text = await authenticator.create("ann", Role.USER)
    assert rows.rows[record.id] == record
    assert record.sha256 == digest(text)
    assert text.split("_", 2)[2] not in repr(rows.rows)


async def test_tokens_are_known_after_a_restart(authenticator: Authenticator, rows: Rows) -> None:
    _, text = await authenticator.create("ann", Role.USER)
    again = Authenticator(rows, lambda: NOW)
    assert _reason(again, f"Bearer {text}") == Reason.TOKEN_UNKNOWN
    await again.load()
    assert again.authenticate(f"bearer {text}").principal == "ann"


async def test_a_token_is_revoked_although_the_caller_goes_away(
    authenticator: Authenticator, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, text = await authenticator.create("ann", Role.USER)
    stored, go, put = asyncio.Event(), asyncio.Event(), rows.put_token

    async def slow(token: TokenRecord) -> None:
        await put(token)
        stored.set()
        await go.wait()

    monkeypatch.setattr(rows, "put_token", slow)
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(authenticator.revoke(record.id), name="caller")
        await stored.wait()
        caller.cancel()
        await asyncio.sleep(0)
        go.set()
    assert _reason(authenticator, f"Bearer {text}") == Reason.TOKEN_REVOKED


@pytest.mark.parametrize("role", Role)
async def test_who_may_see_jobs_may_see_the_servers_figures(
    authenticator: Authenticator, role: Role
) -> None:
    _, text = await authenticator.create("ann", role)
    readers = {Role.ADMIN, Role.USER, Role.VIEWER}
    assert authenticator.may_read(f"Bearer {text}") is (role in readers)
    assert not authenticator.may_read(text)
    assert not authenticator.may_read(None)


async def test_a_revoked_token_stays_revoked(authenticator: Authenticator, rows: Rows) -> None:
    record, text = await authenticator.create("ann", Role.USER)
    first = await authenticator.revoke(record.id)
    assert first == await authenticator.revoke(record.id)
    assert rows.rows[record.id].revoked
    assert _reason(authenticator, f"Bearer {text}") == Reason.TOKEN_REVOKED


async def test_an_unknown_token_cannot_be_revoked(authenticator: Authenticator) -> None:
    with pytest.raises(NotFound):
        await authenticator.revoke("000000000000")


async def test_watchers_hear_of_their_own_token_once(authenticator: Authenticator) -> None:
    mine, _ = await authenticator.create("ann", Role.USER)
    other, _ = await authenticator.create("bob", Role.USER)
    heard: list[str] = []
    authenticator.on_revoked(mine.id, lambda: heard.append("kept"))
    forget = authenticator.on_revoked(mine.id, lambda: heard.append("forgotten"))
    forget()
    forget()
    await authenticator.revoke(other.id)
    await authenticator.revoke(mine.id)
    await authenticator.revoke(mine.id)
    assert heard == ["kept"]


async def test_a_token_lives_as_long_as_it_says(rows: Rows) -> None:
    now = NOW
    authenticator = Authenticator(rows, lambda: now)
    record, text = await authenticator.create("ann", Role.USER, ttl=2_000_000)
    assert authenticator.seconds_left(record) == 2.0
    now += 1_999_999
    authenticator.authenticate(f"Bearer {text}")
    now += 1
    assert _reason(authenticator, f"Bearer {text}") == Reason.TOKEN_EXPIRED


def _texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in directory.iterdir()}


# -- who may ask for predictions -----------------------------------------------------------------

READER = "projects/default/deployments/reader"


async def test_who_may_ask_for_predictions_is_told_with_what_it_opens(rows: Rows) -> None:
    now = NOW
    authenticator = Authenticator(rows, lambda: now)
    ann, _ = await authenticator.create("ann", Role.USER)
    app, text = await authenticator.create("app", Role.PREDICT, deployment=READER, ttl=1_000_000)
    await authenticator.create("eve", Role.VIEWER)
    await authenticator.create("w", Role.WORKER)
    assert {one.principal: one.deployment for one in authenticator.access()} == {
        "ann": "",
        "app": READER,
    }
    assert digest(text) in {one.sha256 for one in authenticator.access()}
    now += 1_000_000
    assert authenticator.access() == [ann]
    await authenticator.revoke(ann.id)
    assert authenticator.access() == []
    again = Authenticator(rows, lambda: NOW)
    await again.load()
    assert [one.deployment for one in again.access()] == [app.deployment]


async def test_followers_hear_when_others_may_ask(authenticator: Authenticator) -> None:
    heard: list[str] = []
    forget = authenticator.on_access(lambda: heard.append("changed"))
    await authenticator.create("eve", Role.VIEWER)
    assert heard == []
    app, _ = await authenticator.create("app", Role.PREDICT, deployment=READER)
    await authenticator.revoke(app.id)
    await authenticator.revoke(app.id)
    assert heard == ["changed", "changed"]
    forget()
    await authenticator.create("ann", Role.USER)
    assert len(heard) == 2


# -- files ---------------------------------------------------------------------------------------


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.token"
    old = os.umask(0)
    try:
        write_secret(path, b"one")
        write_secret(path, b"two")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.token"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"x")
    path.chmod(mode)
    with pytest.raises(InsecureFile, match=r"chmod 600"):
        read_secret(path)


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(InsecureFile, match="not a plain file"):
        read_secret(tmp_path)


async def test_token_files_are_made_once_and_kept(
    authenticator: Authenticator, tmp_path: Path
) -> None:
    await ensure_token_files(authenticator, tmp_path)
    before = _texts(tmp_path)
    assert set(before) == {"admin.token", "worker.token", "router.token"}
    await ensure_token_files(authenticator, tmp_path)
    assert _texts(tmp_path) == before
    worker = authenticator.authenticate(f"Bearer {before['worker.token']}")
    assert (worker.principal, worker.role) == ("worker", Role.WORKER)
    router = authenticator.authenticate(f"Bearer {before['router.token']}")
    assert (router.principal, router.role) == ("router", Role.ROUTER)


async def test_a_token_file_that_is_no_longer_good_is_made_anew(
    authenticator: Authenticator, tmp_path: Path
) -> None:
    await ensure_token_files(authenticator, tmp_path)
    await authenticator.revoke(token_id(_texts(tmp_path)["admin.token"]) or "")
    (tmp_path / "worker.token").write_text("rubbish")
    await ensure_token_files(authenticator, tmp_path)
    for text in _texts(tmp_path).values():
        authenticator.authenticate(f"Bearer {text}")


async def test_a_token_file_that_others_may_read_stops_the_start(
    authenticator: Authenticator, tmp_path: Path
) -> None:
    await ensure_token_files(authenticator, tmp_path)
    (tmp_path / "admin.token").chmod(0o644)
    with pytest.raises(InsecureFile):
        await ensure_token_files(authenticator, tmp_path)
