"""What is read of an image out of an engine's words."""

from __future__ import annotations

from hatoba_worker.executors.containers.images import image_of


def test_where_an_image_has_its_packages_is_known() -> None:
    config = {"Env": ["PATH=/bin", "PYTHONPATH=/opt/code:/opt/packages", "HOME=/home/one"]}
    seen = image_of({"Id": "sha256:1", "Config": config}, "models/digits:7")
    assert seen.python_path == "/opt/code:/opt/packages"
    assert seen.has_home
    assert image_of({"Id": "sha256:1"}, "models/digits:7").python_path == ""
