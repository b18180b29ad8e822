"""Why an attempt ends without its command having run to an end of its own."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import runner_pb2

MOST_MESSAGE = 4096


class AttemptFailed(Exception):
    """Nothing was started, or what came after the command failed.

    `kind` is what is committed; `lines` are the last ones of the log that tells more.
    """

    def __init__(
        self, kind: runner_pb2.ExitKind.ValueType, message: str, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message[:MOST_MESSAGE])
        self.kind = kind
        self.lines = tuple(lines)


class Away(Exception):
    """The server could not be reached, or was not ready; the same again may work later."""


def staging_failed(message: str) -> AttemptFailed:
    """Code, an input or a checkpoint could not be brought in."""
    return AttemptFailed(runner_pb2.EXIT_KIND_STAGING_FAILED, message)


def environment_failed(message: str, lines: Sequence[str] = ()) -> AttemptFailed:
    """The environment could not be made; `lines` are the build log's last."""
    return AttemptFailed(runner_pb2.EXIT_KIND_ENVIRONMENT_FAILED, message, lines)


def no_engine(image: str) -> AttemptFailed:
    """This host has no container engine."""
    return environment_failed(f"nothing here runs containers, and {image!r} is one")


def secret_missing(message: str) -> AttemptFailed:
    """A secret cannot be resolved on this host."""
    return AttemptFailed(runner_pb2.EXIT_KIND_SECRET_MISSING, message)


def output_failed(message: str) -> AttemptFailed:
    """Outputs could not be brought out."""
    return AttemptFailed(runner_pb2.EXIT_KIND_OUTPUT_FAILED, message)


def input_changed(message: str) -> AttemptFailed:
    """An input that is recorded by reference is not the same any more."""
    return AttemptFailed(runner_pb2.EXIT_KIND_INPUT_CHANGED, message)
