"""What a shell asks while a command line is typed: scripts for bash, zsh and fish, and the answers to them.

click finds out what may come next. Here it is made quiet, quick, and right for words that have a colon or an equals
sign in them. The scripts call `kvnode` with a variable set; it prints what may come next instead of doing anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

#: Set by the scripts to what they want.
COMPLETE_VARIABLE = "_KVNODE_COMPLETE"

#: How long a node may take to say something that would be nice to have.
_PATIENCE_S = 0.5

_BASH = """\
# bash completion of %(prog_name)s
%(complete_func)s() {
    local IFS=$'\\n' answer kind value
    # The line itself: the words that bash makes of it end at every colon, as in a URL, and equals sign.
    local line=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=()
    answer=$(COMP_WORDS="$line" COMP_CWORD="${line##*[[:space:]]}" %(complete_var)s=bash_complete "$1" 2>/dev/null)
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done <<< "$answer"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s
# zsh completion of %(prog_name)s
%(complete_func)s() {
    local -a answer plain described
    local kind value help
    answer=("${(@f)$(COMP_WORDS="${(pj:\\n:)words}" COMP_CWORD=$((CURRENT - 1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    # What stands before an equals sign is there to stay.
    [[ $words[CURRENT] == -*=* ]] && compset -P 1 '*='
    for kind value help in $answer; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $help == _ ]]; then plain+=($value); else described+=("$value:$help"); fi ;;
        esac
    done
    (( $#described )) && _describe -V %(prog_name)s described
    (( $#plain )) && compadd -V plain -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
# fish completion of %(prog_name)s
function %(complete_func)s
    set -l option (string match -r -- '^-[^=]*=' (commandline -ct); or echo)
    for line in (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -ct) \\
            %(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                printf '%%s\\n' $option(__fish_complete_directories $parts[2])
            case file
                printf '%%s\\n' $option(__fish_complete_path $parts[2])
            case plain
                printf '%%s\\n' $option$parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Quiet(ShellComplete):
    """Says nothing at all where something is wrong: it would be written into the line that is being typed."""

    def complete(self) -> str:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                return super().complete()
            except Exception:
                return ""


class _Bash(_Quiet, FishComplete):
    """What bash tells, by this script, is what fish tells: the line up to the cursor, and the word before it."""

    name = "bash"
    source_template = _BASH

    def format_completion(self, item: CompletionItem[str]) -> str:
        return f"{item.type},{item.value}"


class _Zsh(_Quiet, ZshComplete):
    source_template = _ZSH


class _Fish(_Quiet, FishComplete):
    source_template = _FISH


_CLASSES: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}

#: The shells that are known.
SHELLS = tuple(_CLASSES)


def register() -> None:
    """Have click answer shells with what is here."""
    for cls in _CLASSES.values():
        add_completion_class(cls)


def script(shell: str, command: click.Command, name: str) -> str:
    """The script that teaches a shell to complete a command.

    Args:
        shell: one of `SHELLS`.
        command: the outermost one.
        name: what it is called by.
    """
    return _CLASSES[shell](command, {}, name, COMPLETE_VARIABLE).source()


def from_choices(
    choices: tuple[str, ...],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]:
    """For a parameter's `shell_complete`: a few words."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]

    return complete


def paths(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]:
    """For a parameter's `shell_complete`: what is on the disk; `kind` is "file" or "dir"."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [CompletionItem(incomplete, type=kind)]

    return complete


def member_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """For a parameter's `shell_complete`: the other members of the cluster, if the node that is meant says so soon."""
    # What completes nothing else should not have to import it.
    import asyncio

    from kvnode.cli.client import Client

    async def ask() -> dict[str, Any]:
        async with asyncio.timeout(_PATIENCE_S), Client(ctx.params["urls"], retries=0) as client:
            return (await client.status()).fields

    fields = asyncio.run(ask())
    names = [str(member["name"]) for member in fields["members"] if member["name"] != fields["name"]]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
