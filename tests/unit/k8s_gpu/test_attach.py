"""What goes to a command in a pod, and how its end is told."""

from __future__ import annotations

import json

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.k8s_gpu.attach import ending, spoken

Input = job_pb2.AttachInput


def test_what_is_said_has_its_channel() -> None:
    assert spoken(Input(data=b"x"), terminal=False) == b"\x00x"
    assert spoken(Input(end=True), terminal=False) == b"\xff\x00"
    assert spoken(Input(end=True), terminal=True) == b"\x00\x04"
    size = spoken(Input(size=job_pb2.TerminalSize(rows=31, columns=97)), terminal=True)
    assert (size[0], json.loads(size[1:])) == (4, {"Width": 97, "Height": 31})


def _ended(**status: object) -> tuple[int, bytes]:
    outputs = ending(json.dumps(status).encode())
    return outputs[-1].ended.exit_code, b"".join(one.stderr for one in outputs)


def test_how_it_ended() -> None:
    # Documented in k8s.io/apimachinery/pkg/util/remotecommand.
    assert _ended(status="Success") == (0, b"")
    causes = [{"reason": "ExitCode", "message": "7"}]
    assert _ended(status="Failure", reason="NonZeroExitCode", details={"causes": causes}) == (
        7,
        b"",
    )
    missing = 'exec: "x": executable file not found in $PATH: unknown'
    assert _ended(status="Failure", message=missing) == (127, missing.encode() + b"\n")
    assert _ended(status="Failure", message="exec: permission denied")[0] == 126
    assert _ended(status="Failure")[0] == 126
