"""What every suite shares: short and full rounds, what needs root, a loop that never blocks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

# How long an example takes is the machine's affair, not the code's.
settings.register_profile("hatoba", deadline=None)
settings.load_profile("hatoba")

# A shell ignores these for what it starts in the background; tests of Ctrl-C need them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Real components: Docker, Kubernetes, emulators of AWS.
pytest_plugins = ["testbed_fixtures", "spread"]

OURS = ["hatoba", "hatoba_plugins", "hatoba_scheduler", "hatoba_worker"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--round full` is what `make long` asks for; everything else makes do with a short one."""
    rounds = ["short", "full"]
    parser.addoption("--round", choices=rounds, default="short", help="how long slow tests go on")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so where there is none; those on real components are marked."""
    for item in items:
        if _on_real_components(item):
            item.add_marker(pytest.mark.real)
        if "root" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def _on_real_components(item: pytest.Item) -> bool:
    """Whether it uses the testbed, by a fixture or one of its own."""
    fixtures = getattr(item, "fixturenames", ())
    return "testbed" in fixtures or hasattr(getattr(item, "module", None), "own_testbed")


@pytest.fixture(scope="session")
def full_round(request: pytest.FixtureRequest) -> bool:
    """True when a slow test may take its minutes; False asks it for one short round."""
    return bool(request.config.getoption("--round") == "full")


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[BlockBuster]:
    """A blocking call of ours under a running event loop raises BlockingError."""
    with blockbuster_ctx(OURS) as blockbuster:
        # The last channel of a test before may be collected here: grpc then joins its own thread.
        lock = blockbuster.functions["threading.Lock.acquire"]
        lock.can_block_in("threading.py", "_wait_for_tstate_lock")
        yield blockbuster
