"""What a worker makes of the words of NVIDIA's driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_worker import gpus
from hatoba_worker.gpus import Gpus

FIRST = "GPU-5c1f2a04-0d5e-4b4a-9a76-3e2b1c0d9f11"
SECOND = "GPU-e7a9b8c2-77aa-4d11-8c33-90ab12cd34ef"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A script in the place of nvidia-smi, which is nowhere yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def says(driver: Path, *products: str) -> None:
    """Two cards, the first half busy; the second's use cannot be read."""
    lines = [f"echo '{name}, {uuid}'" for name, uuid in zip(products, (FIRST, SECOND), strict=True)]
    use = f"echo '{FIRST}, 50'; echo '{SECOND}, [N/A]'"
    driver.write_text(
        f"#!/bin/sh\ncase $1 in *utilization*) {use};; *) {'; '.join(lines)};; esac\n"
    )
    driver.chmod(0o755)


def test_gpus_are_counted_where_no_driver_names_them(driver: Path) -> None:
    assert not driver.exists()
    assert gpus.found(3) == Gpus(("0", "1", "2"))
    assert gpus.found(-1) == Gpus()
    assert gpus.use() == {}


def test_the_driver_names_them_by_uuid(driver: Path) -> None:
    says(driver, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert gpus.found(-1) == Gpus((FIRST, SECOND), "NVIDIA-H100-80GB-HBM3")
    assert gpus.found(1) == Gpus((FIRST,), "NVIDIA-H100-80GB-HBM3")
    assert gpus.found(0) == Gpus()
    assert gpus.found(3) == Gpus(("0", "1", "2")), "more than there are"
    assert gpus.use() == {FIRST: 0.5}


def test_cards_of_two_products_have_no_common_name(driver: Path) -> None:
    says(driver, "NVIDIA H100 80GB HBM3", "NVIDIA RTX 6000 Ada, Rev. 2")
    assert gpus.found(-1) == Gpus((FIRST, SECOND), "")
    assert gpus.found(1).product == "NVIDIA-H100-80GB-HBM3"


def test_a_driver_that_fails_names_none(driver: Path) -> None:
    driver.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    driver.chmod(0o755)
    assert gpus.found(-1) == Gpus()
    assert gpus.use() == {}
