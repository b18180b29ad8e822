"""Options that say which devices a deployment is for, and how its revisions go to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hatoba.cli.options import DURATION, Parsed

if TYPE_CHECKING:
    from hatoba.v1 import deployment_pb2, job_pb2

F = TypeVar("F", bound=Callable[..., Any])

NO_GROUPS = "none"


def _requirement(text: str) -> job_pb2.LabelRequirement:
    from hatoba.terms import parse_requirement

    return parse_requirement(text)


def _group(text: str) -> deployment_pb2.DeviceGroup | str:
    from hatoba.devices import parse_group

    return text if text == NO_GROUPS else parse_group(text)


SELECTOR = Parsed("LABEL", _requirement)
GROUP = Parsed("SPEC", _group)
SHARE = click.FloatRange(0, 1)
COUNT = click.IntRange(0, 1_000_000)


def selector_option(text: str) -> Callable[[F], F]:
    """`--selector`, any number of times; all must hold."""
    return click.option("--selector", multiple=True, type=SELECTOR, metavar="LABEL", help=text)


# In the order in which help lists them.
DEVICE_OPTIONS = [
    selector_option(
        "Run it on devices instead, on each with this label: site=tokyo, site!=tokyo, "
        "'site in (a,b)', ssd or !ssd. All that are said must hold."
    ),
    click.option(
        "--group",
        "groups",
        multiple=True,
        type=GROUP,
        metavar="SPEC",
        help="Devices that get a revision before the others, an amount and labels: 5%, 10, "
        "ring=canary or 5%,ring=canary,approve, which waits until resumed. One after the other; "
        "none: all at once.",
    ),
    click.option(
        "--per-minute",
        type=COUNT,
        metavar="N",
        help="So many devices are offered it in a minute. [default: any number]",
    ),
    click.option(
        "--growth",
        type=click.FloatRange(0, 100),
        metavar="FACTOR",
        help="The rate is multiplied by this whenever --growth-after more succeeded.",
    ),
    click.option("--growth-after", type=COUNT, metavar="N", help="See --growth."),
    click.option(
        "--go-on-share",
        type=SHARE,
        metavar="SHARE",
        help="Of a group so much must have succeeded before the next one's turn. [default: 0.9]",
    ),
    click.option(
        "--group-wait",
        type=DURATION,
        metavar="DURATION",
        help="How long a group waits for devices that do not come. [default: 15m]",
    ),
    click.option(
        "--abort-share",
        type=SHARE,
        metavar="SHARE",
        help="Given up when it fails on more of the devices that took it up. [default: 0.2]",
    ),
    click.option(
        "--abort-least",
        type=COUNT,
        metavar="N",
        help="Not judged by fewer devices. [default: 10, or all there are]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Offered anew to a device so often after what may pass. [default: 1]",
    ),
    click.option(
        "--retry-wait",
        type=DURATION,
        metavar="DURATION",
        help="How long after; twice as long after each further one. [default: 5m]",
    ),
    click.option(
        "--offer-deadline",
        type=DURATION,
        metavar="DURATION",
        help="A device that did not take it up by then counts as not reached, and gets it when it "
        "comes. [default: 7d]",
    ),
    click.option(
        "--apply-deadline",
        type=DURATION,
        metavar="DURATION",
        help="A device that took it up and does not run it by then has an error. [default: 1h]",
    ),
    click.option(
        "--approve-deadline",
        type=DURATION,
        metavar="DURATION",
        help="Given up when nobody resumes it so long after a group with `approve` had its turn. "
        "[default: 30d]",
    ),
    click.option(
        "--allow-unenforced-limits/--only-enforced-limits",
        default=None,
        help="Also where nobody but the agent enforces the limit on memory. "
        "[default: only-enforced-limits]",
    ),
    click.option(
        "--allow-removal",
        is_flag=True,
        default=None,
        help="Devices may lose it by another selector; `hatoba plan --deployment` says which.",
    ),
]
