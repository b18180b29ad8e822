"""The command tree. Nothing is imported for a command before it is used; help texts are here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from hatoba import __version__
from hatoba.cli.session import Session, server_options

ENTRY_POINTS = "hatoba.cli"
# Name, where its command is, and its line in `hatoba --help`.
COMMANDS = {
    "run": ("hatoba.cli.run:run", "Run a command as a job and follow it."),
    "logs": ("hatoba.cli.logs:logs", "Show what a job wrote (no name: my latest)."),
    "status": ("hatoba.cli.status:status", "Server, queues, what waits or is unclear, and mine."),
    "jobs": ("hatoba.cli.jobs:jobs", "Submit, list, look at, cancel and compare jobs."),
    "datasets": ("hatoba.cli.datasets:datasets", "Folders of examples, by name and number."),
    "models": ("hatoba.cli.models:models", "Models, their versions and aliases, and lineage."),
    "images": ("hatoba.cli.images:images", "Images with a model's code and environment."),
    "code": ("hatoba.cli.code:code", "Code as jobs ran it, and where it came from."),
    "predict": ("hatoba.cli.predict:predict", "Ask a deployment, or a model for a whole dataset."),
    "deploy": ("hatoba.cli.deploy:deploy", "Deploy a model version and follow its roll-out."),
    "deployments": (
        "hatoba.cli.deployments:deployments",
        "What serves models: look at, scale, steer, take away.",
    ),
    "plan": ("hatoba.cli.plan:plan", "What would happen to a job, or to devices, now."),
    "explain": (
        "hatoba.cli.explain:explain",
        "Why a job or a device waits; what is behind a prediction.",
    ),
    "schedules": (
        "hatoba.cli.schedules:schedules",
        "Jobs that are submitted again and again, by the clock.",
    ),
    "queues": ("hatoba.cli.queues:queues", "Where jobs wait, and how much may run."),
    "backends": ("hatoba.cli.backends:backends", "What runs the jobs, and what failed to load."),
    "hosts": ("hatoba.cli.hosts:hosts", "Machines that run our worker."),
    "devices": ("hatoba.cli.devices:devices", "Machines at the edge, which are often away."),
    "events": ("hatoba.cli.events:events", "Every change of every job, as it happens."),
    "webhooks": ("hatoba.cli.webhooks:webhooks", "Events that are posted to other systems."),
    "tokens": ("hatoba.cli.tokens:tokens", "Who may come in."),
    "context": ("hatoba.cli.contexts:context", "Which server is talked to."),
    "login": ("hatoba.cli.contexts:login", "Remember a server and a token for it."),
    "completion": ("hatoba.cli.completion:completion", "Completion for bash, zsh or fish."),
}
# Commands that come with an extra of this distribution, and the extra.
EXTRAS = {
    "agent": ("edge", "Make this machine a device, and be its agent."),
    "server": ("server", "Start, check and stop the server."),
    "worker": ("worker", "Add this machine as a host."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, or listed from entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our own in the order of the table, then what distributions brought."""
        return [*COMMANDS, *sorted(EXTRAS.keys() | (_brought().keys() - COMMANDS.keys()))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            found = getattr(import_module(module), attribute)
            return found if isinstance(found, click.Command) else None
        brought = _brought().get(name)
        if brought is not None:
            return _load(brought)
        return _missing(name) if name in EXTRAS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the error."""
        return resolve_with_hint(super().resolve_command, self, ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with their lines, none of them imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _line(name)) for name in self.list_commands(ctx)])


class Group(click.Group):
    """A group that names the nearest command when there is none of that name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the error."""
        return resolve_with_hint(super().resolve_command, self, ctx, args)


Resolved = tuple[str | None, click.Command | None, list[str]]


def resolve_with_hint(
    resolve: Callable[[click.Context, list[str]], Resolved],
    group: click.Group,
    ctx: click.Context,
    args: list[str],
) -> Resolved:
    """Resolve a command; an unknown one is a usage error that names the nearest there is."""
    name = args[0] if args else ""
    if ctx.resilient_parsing or name.startswith("-") or group.get_command(ctx, name) is not None:
        return resolve(ctx, args)
    known = group.list_commands(ctx)
    near = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean `{ctx.command_path} {near[0]}`?"
        if near
        else f"there are: {', '.join(known)}"
    )
    raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)


def _brought() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _line(name: str) -> str:
    if name in COMMANDS:
        return COMMANDS[name][1]
    if name in EXTRAS:
        return EXTRAS[name][1]
    brought = _brought()[name]
    return f"(from {brought.dist.name})" if brought.dist is not None else "(a plug-in)"


def _load(point: EntryPoint) -> click.Command:
    """What an entry point names; a command that says what is missing when it cannot be imported."""
    try:
        found = point.load()
    except ModuleNotFoundError as error:
        if point.name in EXTRAS:
            return _missing(point.name, error.name or "")
        return _broken(point, str(error))
    except Exception as error:  # noqa: BLE001 - somebody's broken plug-in must not look like ours
        return _broken(point, f"{type(error).__name__}: {error}")
    if isinstance(found, click.Command):
        return found
    return _broken(point, f"{point.value} is not a click command")


def _missing(name: str, module: str = "") -> click.Command:
    extra = EXTRAS[name][0]
    lacks = f" ({module} is not installed)" if module else ""
    return _refusing(
        name, f"`hatoba {name}` needs the extra {extra!r}{lacks}: pip install 'hatoba[{extra}]'"
    )


def _broken(point: EntryPoint, reason: str) -> click.Command:
    source = point.dist.name if point.dist is not None else point.value
    return _refusing(point.name, f"`hatoba {point.name}` from {source} cannot be loaded: {reason}")


def _refusing(name: str, message: str) -> click.Command:
    """A command that takes anything and says why it cannot be used."""

    def refuse(**_: Any) -> None:
        raise click.ClickException(message)

    arguments = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True, "help_option_names": []}
    return click.Command(
        name, callback=refuse, params=[arguments], context_settings=settings, help=message
    )


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes and every option: docs/cli.md. More on a command: hatoba COMMAND --help.",
)
@click.version_option(
    __version__, "-V", "--version", prog_name="hatoba", message="%(prog)s %(version)s"
)
@server_options(hidden=False)
@click.pass_context
def root(ctx: click.Context) -> None:
    """One control plane for the machine-learning loop.

    Begin with `hatoba run -- python train.py`. Without a server named, one is started in your home.
    """
    ctx.ensure_object(Session)
