"""What backends show as their own: where it is found, and that nothing else is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_scheduler.auth.server_secrets import ServerSecrets, without


def kept(data: Path, content: bytes, mode: int = 0o600) -> Path:
    path = data / "credentials" / "aws-key"
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(mode)
    return path


async def refusal(secrets: ServerSecrets, name: str) -> str:
    with pytest.raises(KeyError) as caught:
        await secrets.value(name)
    return str(caught.value.args[0])


async def test_a_file_comes_before_a_variable(tmp_path: Path) -> None:
    secrets = ServerSecrets(tmp_path, {"HATOBA_CREDENTIALS_AWS_KEY": "of the variable"})
    assert await secrets.value("aws-key") == "of the variable"
    kept(tmp_path, b"of the file\n")
    assert await secrets.value("aws-key") == "of the file"


async def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    told = await refusal(ServerSecrets(tmp_path, {}), "aws-key")
    assert f"{tmp_path}/credentials/aws-key (mode 0600)" in told
    assert "HATOBA_CREDENTIALS_AWS_KEY" in told


async def test_what_others_may_read_is_not_taken(tmp_path: Path) -> None:
    path = kept(tmp_path, b"hidden", 0o640)
    assert f"chmod 600 {path}" in await refusal(ServerSecrets(tmp_path, {}), "aws-key")


async def test_what_is_no_text_is_not_shown(tmp_path: Path) -> None:
    kept(tmp_path, b"hidden\xff")
    assert "hidden" not in await refusal(ServerSecrets(tmp_path, {}), "aws-key")


@pytest.mark.parametrize("name", ["", "../admin.token", "a/b", ".hidden"])
async def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "admin.token").write_text("hidden")
    assert "is no name" in await refusal(ServerSecrets(tmp_path, {}), name)


def test_others_do_not_get_the_variables() -> None:
    assert without({"HATOBA_CREDENTIALS_A": "x", "HATOBA_SECRET_A": "y", "PATH": "/"}) == {
        "HATOBA_SECRET_A": "y",
        "PATH": "/",
    }
