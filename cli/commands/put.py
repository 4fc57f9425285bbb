"""`kvnode put`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from kvnode.cli.client import Client, Written
from kvnode.cli.client.jsonvalues import JsonText
from kvnode.cli.jsontext import to_json
from kvnode.cli.options import json_option, key_argument, nodes_options


@click.command(
    epilog="""\b
Examples:
  kvnode put greeting hello                   the string "hello"
  kvnode put visits 42                        the string "42"
  kvnode put -j visits 42                     the number 42
  kvnode put -j user/7 '{"name": "Ada"}'      an object
  kvnode put page -f index.html               a file's text as a string
  date | kvnode put now -                     the standard input, line end included
  kvnode put -- key -5                        a value that begins with a dash
"""
)
@key_argument
@click.argument("value", required=False)
@click.option("-j", "--json-value", "is_json", is_flag=True, help="VALUE is JSON text and is stored as it is.")
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Take the value from FILE.",
)
@json_option('Print {"status", "key", "seq", "epoch"}.', writes=True)
@nodes_options
def put(
    key: str,
    value: str | None,
    is_json: bool,
    path: Path | None,
    as_json: bool,
    urls: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Set a key to a value.

    VALUE is stored as a string, `-` reads it from the standard input. The command returns once the node has made
    the write durable.
    """
    written = asyncio.run(_put(key, _value(value, path, is_json), urls, timeout_s))
    if as_json:
        seq, epoch = written.position.seq, str(written.position.epoch)
        click.echo(to_json({"status": "OK", "key": key, "seq": seq, "epoch": epoch}))
    else:
        click.echo("OK")


async def _put(key: str, value: str | JsonText, urls: tuple[str, ...], timeout_s: float) -> Written:
    async with Client(urls, timeout_s=timeout_s, retries=0) as client:
        return await client.put(key, value)


def _value(argument: str | None, path: Path | None, is_json: bool) -> str | JsonText:
    """The value to store."""
    match argument, path:
        case None, Path():
            content = path.read_bytes()
        case "-", None:
            content = sys.stdin.buffer.read()
        case str(), None:
            # The bytes that the shell passed.
            content = argument.encode("utf-8", "surrogateescape")
        case _:
            raise click.UsageError("give either VALUE or --file FILE")
    try:
        return JsonText(content) if is_json else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the value is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise click.UsageError(f"the value is not JSON: {error}") from error
