"""What an instance has not is told with its field."""

from __future__ import annotations

from hatoba.v1 import job_pb2
from hatoba_plugins.checks import lacking
from hatoba_plugins.values import Capabilities


def test_with_an_image_of_its_own_a_backend_needs_no_interpreter() -> None:
    """Clients name their interpreter wherever nothing else is asked for."""
    spec, can = job_pb2.JobSpec(), Capabilities(images=True)
    spec.environment.caller_interpreter = "/usr/bin/python3"
    (problem,) = lacking(spec, can)
    assert problem.field == "environment.caller_interpreter"
    assert lacking(spec, can, image="registry.test/train:1") == []
    assert spec.environment.caller_interpreter
