"""Which server is meant."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from hatoba.errors import InvalidSpec, NotFound
from hatoba.settings import (
    Choice,
    Context,
    ContextBook,
    Memory,
    data_dir,
    embedded_server,
    find_server,
    parse_address,
    recall,
    remember,
)


@pytest.fixture
def environment(home: Path, tmp_path: Path) -> dict[str, str]:
    """A home with nothing in it."""
    (tmp_path / "token").write_text("from-variable\n")
    return {"HOME": str(home)}


def test_without_anything_the_embedded_server_is_meant(environment: dict[str, str]) -> None:
    assert find_server(Choice(), environment) is None


def test_flags_go_before_variables_before_the_context(
    environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    book = ContextBook(home / ".config/hatoba")
    book.put(Context("lab", "127.0.0.1:1", project="vision"), "from-context", use=True)
    lab = find_server(Choice(), environment)
    assert lab is not None
    assert (lab.address, lab.token, lab.project, lab.source) == (
        "127.0.0.1:1",
        "from-context",
        "vision",
        "context lab",
    )
    environment |= {"HATOBA_ADDRESS": "127.0.0.1:2", "HATOBA_TOKEN_FILE": str(tmp_path / "token")}
    variable = find_server(Choice(), environment)
    assert variable is not None
    assert (variable.address, variable.token) == ("127.0.0.1:2", "from-variable")
    flag = find_server(Choice(address="127.0.0.1:3"), environment)
    assert flag is not None
    assert (flag.address, flag.token) == ("127.0.0.1:3", "from-variable")
    named = find_server(Choice(context="lab"), environment)
    assert named is not None
    assert named.address == "127.0.0.1:1"


def test_the_embedded_server_is_found_by_its_file(environment: dict[str, str], home: Path) -> None:
    data = data_dir(environment)
    assert data == home / ".local/share/hatoba"
    data.mkdir(parents=True)
    (data / "admin.token").write_text("root\n")
    found = {"grpc": "127.0.0.1:5", "http": "127.0.0.1:6", "pid": os.getpid()}
    (data / "server.json").write_text(json.dumps(found | {"token_file": str(data / "admin.token")}))
    server = find_server(Choice(), environment)
    assert server is not None
    assert (server.address, server.token, server.tls) == ("127.0.0.1:5", "root", False)
    assert server.key == str(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"grpc": "a:1"}',
        '{"grpc": "127.0.0.1:5", "pid": 99999999}',
        '{"pid": "x", "grpc": ""}',
    ],
)
def test_a_file_that_a_dead_server_left_is_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(text)
    assert embedded_server(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "address", "tls"),
    [
        ("127.0.0.1:7070", "127.0.0.1:7070", False),
        ("localhost:7070", "localhost:7070", False),
        ("[::1]:7070", "[::1]:7070", False),
        ("https://127.0.0.1:7070", "127.0.0.1:7070", True),
        ("hatoba.example:443", "hatoba.example:443", True),
        ("grpcs://hatoba.example:443/", "hatoba.example:443", True),
        ("127.0.0.1.example.com:1", "127.0.0.1.example.com:1", True),
    ],
)
def test_only_loopback_is_plain(text: str, address: str, tls: bool) -> None:
    assert parse_address(text) == (address, tls)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:port", "host:70000", "a b:1", "ftp://a:1"]
)
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is not an address"):
        parse_address(text)


def test_a_token_never_goes_out_in_plain_text() -> None:
    with pytest.raises(InvalidSpec, match="plain text"):
        parse_address("http://hatoba.example:80")


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "\xff"])
def test_a_bad_token_file_is_named(
    content: str | None, environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidSpec, match="bad"):
        find_server(Choice(address="127.0.0.1:1", token_file=str(path)), environment)


def test_tokens_of_contexts_are_their_owners_alone(home: Path) -> None:
    book = ContextBook(home / ".config/hatoba")
    book.put(Context("lab", "127.0.0.1:1"), "secret", use=True)
    for path in (book.path, book.directory / "tokens" / "lab"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in book.path.read_text()
    book.remove("lab")
    assert (book.current, book.all()) == ("", [])
    assert not (book.directory / "tokens" / "lab").exists()


def test_contexts_that_are_not_there_are_not_found(home: Path) -> None:
    book = ContextBook(home / ".config/hatoba")
    book.put(Context("lab", "127.0.0.1:1"))
    for act in (book.use, book.remove):
        with pytest.raises(NotFound, match="no context 'other'") as raised:
            act("other")
        assert "lab" in raised.value.remedy
    with pytest.raises(InvalidSpec, match="not a context's name"):
        book.put(Context("../../evil", "127.0.0.1:1"), "t")


def test_memory_is_kept_for_each_server_and_never_in_the_way(
    environment: dict[str, str], home: Path
) -> None:
    assert recall("a", environment) == Memory()
    remember("a", Memory("ann", "train-1"), environment)
    remember("b", Memory("bob", "eval-2"), environment)
    assert recall("a", environment) == Memory("ann", "train-1")
    (home / ".local/state/hatoba/last.json").write_text("broken")
    assert recall("a", environment) == Memory()
