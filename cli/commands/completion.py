"""`kvnode completion`."""

from __future__ import annotations

import click

from kvnode.cli.completing import SHELLS, script


@click.command(
    epilog="""\b
Examples:
  kvnode completion bash > ~/.local/share/bash-completion/completions/kvnode
  kvnode completion fish > ~/.config/fish/completions/kvnode.fish
  kvnode completion zsh > ~/.zsh/completions/_kvnode     with `fpath+=(~/.zsh/completions)` before
                                                         `compinit` in ~/.zshrc
  source <(kvnode completion bash)                       for the present shell only; zsh likewise
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands in a shell.

    The Tab key then completes commands, options, their values where there are only some, and names of files;
    `kvnode forget` completes the members of the cluster, if the node that it would ask answers within half a second.
    The script calls the `kvnode` that it finds, so it stays right when that is updated.
    """
    click.echo(script(shell, ctx.find_root().command, "kvnode"), nl=False)
