"""The entry point of the `kvnode` command: the table of its subcommands, which are imported only when they are used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from kvnode.cli.completing import COMPLETE_VARIABLE, register
from kvnode.cli.descriptors import keep_standard_descriptors
from kvnode.cli.errors import CommandFailed
from kvnode.cli.reporting import WrongUsage, did_you_mean, reported


class _Listed(NamedTuple):
    """A subcommand as the table knows it.

    Attributes:
        target: `module:attribute` in `kvnode.cli.commands`.
        summary: its line in the overview; the first sentence of its own help.
        prints: whether it is of no use without a stdout.
    """

    target: str
    summary: str
    prints: bool = True


#: The sections of the overview, each with its subcommands in the order in which they are shown.
SECTIONS: dict[str, dict[str, _Listed]] = {
    "Node": {
        "start": _Listed("start:start", "Run a node until it is told to stop.", prints=False),
        "join": _Listed("join:join", "Run a node as a replica of a primary.", prints=False),
        "promote": _Listed("promote:promote", "Make a replica the primary of its cluster."),
        "forget": _Listed("forget:forget", "Drop a member that will not return."),
    },
    "Data": {
        "put": _Listed("put:put", "Set a key to a value."),
        "get": _Listed("get:get", "Print the value of a key."),
        "delete": _Listed("delete:delete", "Remove a key."),
        "range": _Listed("range:range_", "Print the keys and values of a range, in key order."),
        "load": _Listed("load:load", "Store the records of a JSON lines file."),
        "dump": _Listed("dump:dump", "Write all records, or those of a prefix, as JSON lines."),
    },
    "Inspect": {
        "status": _Listed("status:status", "Show how a node is doing."),
        "bench": _Listed("bench:bench", "Measure how fast a node answers."),
    },
    "Debug": {
        "tail": _Listed("tail:tail", "Print the entries of a node's log as JSON lines."),
        "nc": _Listed("nc:nc", "Talk to a node's peer port in frames as JSON lines."),
        "frame": _Listed("frame:frame", "Turn frames of the peer protocol into JSON lines, and back."),
    },
    "Shell": {
        "completion": _Listed("completion:completion", "Print a script that completes commands in a shell."),
    },
    "Log files": {
        "wal": _Listed("wal:wal", "Look into the log of a node's data directory, check or repair it."),
    },
}


def _listed(name: str) -> _Listed | None:
    """The subcommand of that name, if there is one."""
    return next((commands[name] for commands in SECTIONS.values() if name in commands), None)


#: What commands are called by other programs for data.
_ELSEWHERE = {
    "set": "put",
    "del": "delete",
    "rm": "delete",
    "scan": "range",
    "list": "range",
    "ls": "range",
    "import": "load",
    "export": "dump",
    "info": "status",
    "top": "status --watch",
    "stats": "status --watch",
    "benchmark": "bench",
    "server": "start",
    "run": "start",
    "serve": "start",
}


class _Commands(click.Group):
    """A group that imports a subcommand when it is asked for, so that none pays for what the others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (listed := _listed(cmd_name)) is None:
            return None
        module, _, attribute = listed.target.partition(":")
        command: click.Command = getattr(import_module(f"kvnode.cli.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            meant = _ELSEWHERE.get(name)
            hint = f"that is `kvnode {meant}` here" if meant else did_you_mean(name, self.list_commands(ctx))
            raise WrongUsage(f"No such command {name!r}.", ctx, hint=hint or "`kvnode --help` lists the commands")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        # From the table: click's own would import every command for its summary.
        names = [
            CompletionItem(name, help=listed.summary)
            for commands in SECTIONS.values()
            for name, listed in commands.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *args: Any, **kwargs: Any) -> Any:
        keep_standard_descriptors()
        # One name for all scripts, whatever the program was started as.
        kwargs.setdefault("complete_var", COMPLETE_VARIABLE)
        register()
        return super().main(*args, **kwargs)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), listed.summary) for name, listed in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with reported(ctx):
            return super().invoke(ctx)


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  kvnode start --data ./n1                       a node on http://127.0.0.1:5001
  kvnode put greeting hello
  kvnode get greeting
  kvnode range --prefix user/ --limit 10
  kvnode dump -o backup.jsonl && kvnode load backup.jsonl
  kvnode join 127.0.0.1:7001 --data ./n2 --http 127.0.0.1:5002 --peer 127.0.0.1:7002
  kvnode tail 127.0.0.1:7002 --follow            what the replica has, as it comes

The data commands talk to http://127.0.0.1:5001 unless --url or KVNODE_URL names another node.
Exit codes: 0 done; 1 not found, or failed; 2 wrong usage.
`kvnode COMMAND --help` tells more about a command.""",
)
@click.version_option(package_name="kvnode", prog_name="kvnode")
@click.pass_context
def main(ctx: click.Context) -> None:
    """A replicated, persistent, ordered key-value node, and the tools to use it."""
    listed = _listed(ctx.invoked_subcommand or "")
    if sys.stdout is None and listed is not None and listed.prints:
        raise CommandFailed("stdout is closed", hint="`>/dev/null` throws away what is printed")


if __name__ == "__main__":
    main()
