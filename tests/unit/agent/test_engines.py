"""Where a device's container engine is looked for, and what is kept of the images it was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_worker.agent.blobs import Unusable
from hatoba_worker.agent.engines import DeviceEngine, Known, Layer

IMAGE = f"r.example:5000/team/adder@sha256:{'a' * 64}"
KNOWN = Known(IMAGE, "sha256:1", (Layer("sha256:2", "sha256:3"), Layer("", "sha256:4")))


def test_an_engine_is_there_when_it_was_told_or_is_seen(tmp_path: Path) -> None:
    socket = tmp_path / "docker.sock"
    environ = {"DOCKER_HOST": f"unix://{socket}"}
    none = "this device has no container engine"
    assert DeviceEngine.of(tmp_path, "none", {}).lacks() == none
    assert DeviceEngine.of(tmp_path, "", {"DOCKER_HOST": "tcp://elsewhere:2375"}).lacks() == none
    assert DeviceEngine.of(tmp_path, "", environ).lacks() == none
    assert DeviceEngine.of(tmp_path, str(socket), {}).lacks() == ""
    socket.touch()
    assert DeviceEngine.of(tmp_path, "", environ).lacks() == ""
    assert DeviceEngine.of(tmp_path, "none", environ).lacks() == none


def test_who_cannot_speak_to_an_engine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = DeviceEngine.of(tmp_path, str(tmp_path / "docker.sock"), {}).lacks()
    assert "pip install 'hatoba[docker]'" in found


def test_an_engine_that_took_an_image_is_waited_for(tmp_path: Path) -> None:
    engine = DeviceEngine.of(tmp_path, "", {"DOCKER_HOST": f"{tmp_path}/docker.sock"})
    engine.book.prepare()
    engine.book.keep(KNOWN)
    assert engine.lacks() == ""


def test_what_was_kept_is_known_until_it_is_forgotten(tmp_path: Path) -> None:
    book = DeviceEngine.of(tmp_path, "", {}).book
    book.prepare()
    assert (book.known(IMAGE), book.all()) == (None, [])
    book.keep(KNOWN)
    assert (book.known(IMAGE), book.all()) == (KNOWN, [KNOWN])
    assert book.known(f"elsewhere/x@sha256:{'a' * 64}") is None
    book.forget(IMAGE)
    assert book.known(IMAGE) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"reference": 1, "id": 2, "layers": 3}', "\xff"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    book = DeviceEngine.of(tmp_path, "", {}).book
    book.prepare()
    book.keep(KNOWN)
    (file,) = (tmp_path / "images").iterdir()
    file.write_bytes(text.encode("latin-1"))
    assert (book.known(IMAGE), book.all()) == (None, [])


def test_two_devices_call_the_same_image_by_different_names(tmp_path: Path) -> None:
    tags = {DeviceEngine.of(tmp_path / name, "", {}).book.tag(IMAGE) for name in "ab"}
    assert len(tags) == 2
    with pytest.raises(Unusable, match="names no image by digest"):
        DeviceEngine.of(tmp_path, "", {}).book.tag("r.example/adder:1")
