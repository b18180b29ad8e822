"""`hatoba completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print what lets SHELL complete hatoba's commands and options.

    \b
    bash: hatoba completion bash > ~/.local/share/bash-completion/completions/hatoba
    zsh:  hatoba completion zsh > "${fpath[1]}/_hatoba"
    fish: hatoba completion fish > ~/.config/fish/completions/hatoba.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "hatoba", "_HATOBA_COMPLETE").source())
