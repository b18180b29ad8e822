"""What is kept of a device, and that one agent alone has its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hatoba_worker.agent.lock import AlreadyRuns, hold, is_held
from hatoba_worker.agent.settings import AwsIot, BadSettings, RegistryAccess, Settings

MADE = Settings("cam-1", "[::1]:7443", "control.example", "0123456789ab", "h:7420", 5, 7)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    data = tmp_path / "device"
    MADE.save(data)
    assert Settings.load(data) == MADE
    assert (MADE.host, MADE.port) == ("::1", 7443)


def test_how_registries_are_reached_is_kept(tmp_path: Path) -> None:
    mirror = RegistryAccess("10.0.0.5:5000", "/etc/ca.pem", "/etc/login", plain=True)
    made = MADE.reaching("r.example", mirror).reaching("*", RegistryAccess(plain=True))
    made.save(tmp_path)
    assert Settings.load(tmp_path) == made
    assert made.reaching("*", None).registries == {"r.example": mirror}


def test_what_it_is_at_aws_iot_is_kept(tmp_path: Path) -> None:
    content = "s3://models/a?region=eu-central-1&role-alias=r&credentials=c.example"
    for thing in (AwsIot("hatoba-cam-1"), AwsIot("shops-cam-1", "wanted", content)):
        made = Settings("cam-1", "a.example:443", "a.example", aws_iot=thing)
        made.save(tmp_path)
        assert Settings.load(tmp_path) == made
    assert (thing.said, thing.place is not None) == ("wanted-said", True)


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert Settings.load(tmp_path) is None


def test_a_newer_agents_settings_are_read_by_an_older_one(tmp_path: Path) -> None:
    told = {"device": "d", "address": "h:1", "server_name": "n", "colour": "red"}
    (tmp_path / "agent.json").write_text(json.dumps(told))
    assert Settings.load(tmp_path) == Settings("d", "h:1", "n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"device": "d", "address": "h:1"}',
        '{"device": "d", "address": "h:x", "server_name": "n"}',
        '{"device": 5, "address": "h:1", "server_name": "n"}',
        '{"device": "d", "address": "h:1", "server_name": "n", "up_per_day": "5"}',
        '{"device": "d", "address": "h:1", "server_name": "n", "registries": "r"}',
        '{"device": "d", "address": "h:1", "server_name": "n", "aws_iot": {}}',
        '{"device": "d", "address": "h:1", "server_name": "n", "aws_iot": {"thing": ""}}',
        '{"device": "d", "address": "h:1", "server_name": "n", "aws_iot": {"thing": 5}}',
        '{"device": "d", "address": "h:1", "server_name": "n",'
        ' "aws_iot": {"thing": "t", "content": "models"}}',
        '{"device": "d", "address": "h:1", "server_name": "n", "registries": {"r": "at"}}',
        '{"device": "d", "address": "h:1", "server_name": "n", "registries": {"r": {"plain": 1}}}',
        '{"device": "d", "address": "h:1", "server_name": "n", "registries": {"r": {"at": true}}}',
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(BadSettings, match=r"agent\.json"):
        Settings.load(tmp_path)


def test_a_directory_is_one_agents(tmp_path: Path) -> None:
    data = tmp_path / "device"
    assert not is_held(data)
    handle = hold(data)
    assert is_held(data)
    with pytest.raises(AlreadyRuns, match="another agent"):
        hold(data)
    os.close(handle)
    assert not is_held(data)
    os.close(hold(data))
