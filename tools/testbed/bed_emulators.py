"""AWS as far as emulators go: moto (Batch, S3, logs), ministack (ECS); containers are real ones.

Both listen on the bridge's gateway address, for tests and containers alike.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

from bed_place import ROOT, Facts, Place, Unavailable
from bed_processes import end, free_port, lives, start, until

BIN = ROOT / ".venv-emulators" / "bin"
READY_WITHIN = 60.0
# What a client says to them; no emulator checks it.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "hatoba-test",
    "AWS_SECRET_ACCESS_KEY": "hatoba-test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def moto_up(place: Place, engine: Facts) -> Facts:
    """Start moto's server."""
    address, port = choose(engine)
    command = [str(BIN / "moto_server"), "--host", address, "--port", str(port)]
    return serve(place, "moto", command, environ(engine), f"http://{address}:{port}")


def ministack_up(place: Place, engine: Facts) -> Facts:
    """Start ministack without the servers that it would open beside its one port."""
    address, port = choose(engine)
    settings = {
        **environ(engine),
        "BIND_HOST": address,
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": address,
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        # Seconds that the engine may take for a call: more than ten on a machine that does much.
        "MINISTACK_DOCKER_TIMEOUT": "120",
        "TMPDIR": str(place.make("ministack")),
        "S3_DATA_DIR": str(place.make("ministack", "s3")),
    }
    command = [str(BIN / "python"), "-m", "ministack"]
    return serve(place, "ministack", command, settings, f"http://{address}:{port}")


def serve(
    place: Place, name: str, command: Sequence[str], settings: Mapping[str, str], endpoint: str
) -> Facts:
    """One emulator's process, ready."""
    process = start(place, name, command, settings)
    facts = {"endpoint": endpoint, "credentials": CREDENTIALS, "processes": [process]}
    try:
        until(lambda: answers(endpoint), [process], READY_WITHIN, name)
    except BaseException:
        end(process)
        raise
    return facts


def down(place: Place, facts: Facts) -> None:
    """End it."""
    for process in facts["processes"]:
        end(process)


def healthy(facts: Facts) -> bool:
    """Whether it runs and answers."""
    return all(map(lives, facts["processes"])) and answers(facts["endpoint"])


def choose(engine: Facts) -> tuple[str, int]:
    """Where an emulator is to listen."""
    if not (BIN / "python").exists():
        raise Unavailable("the emulators' environment is missing: make venv-emulators")
    address = str(engine["gateway"])
    return address, free_port(address)


def environ(engine: Facts) -> dict[str, str]:
    """What both are told: which engine, and not to look for credentials."""
    return {"DOCKER_HOST": f"unix://{engine['socket']}", **CREDENTIALS}


def answers(endpoint: str) -> bool:
    """Whether something there speaks HTTP; what it says does not matter."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(endpoint, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
