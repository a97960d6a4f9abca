"""``postroom completion``: what a shell has to read so that it completes commands and options."""

import click
from click.shell_completion import get_completion_class

from postroom.cli import CommandError, main


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), envvar="POSTROOM_SHELL")
def completion(*, shell: str) -> None:
    """Print the completion script for SHELL (or POSTROOM_SHELL).

    bash: eval "$(postroom completion bash)" in ~/.bashrc; zsh: the same with zsh in ~/.zshrc; fish: postroom
    completion fish > ~/.config/fish/completions/postroom.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise CommandError(f"there is no completion for {shell}")
    click.echo(kind(main, {}, "postroom", "_POSTROOM_COMPLETE").source())
