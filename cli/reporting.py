"""How a command that fails says so: one line on stderr and an exit code, never a traceback for what can be foreseen.

A second line says what to try next, where there is something to say that is true.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import click

from kvnode.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, ClientError
from kvnode.cli.printable import printable
from kvnode.protocol.errors import KvError

_JSON_WANTED = f"{__name__}.json"
_WRITES = f"{__name__}.writes"


class WrongUsage(click.UsageError):
    """A command line that is wrong, with what may have been meant."""

    def __init__(self, message: str, ctx: click.Context | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file)
        if self.hint:
            click.echo(f"hint: {printable(self.hint)}", file=file, err=file is None)


def want_json(ctx: click.Context, *, writes: bool = False) -> None:
    """Let errors be reported as JSON, too: ``{"error": {"code", "message", ...}}``, the form that REST has.

    Args:
        writes: whether to say also if the write may have happened, ``"maybe_written"``.
    """
    ctx.meta[_JSON_WANTED] = True
    ctx.meta[_WRITES] = writes


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """Run a command inside; turn its failure into a report and `click.exceptions.Exit` with the right code."""
    try:
        yield
        # What the interpreter flushes at its end can no longer be answered for.
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.NoSuchOption as error:
        hint = did_you_mean(error.option_name, error.possibilities or ())
        raise WrongUsage(error.message, error.ctx, hint=hint) from error
    except KvError as error:
        report(ctx, error.code, error.message, hint=error.hint, fields=_fields(ctx, error))
        raise click.exceptions.Exit(EXIT_FAILED) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Whatever is still buffered would fail again when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(EXIT_PIPE_CLOSED) from None
    except OSError as error:
        message = error.strerror or str(error)
        where = f"{error.filename}: " if error.filename else ""
        report(ctx, "os_error", f"{where}{message}", hint=_remedy(error))
        raise click.exceptions.Exit(EXIT_FAILED) from error


def _fields(ctx: click.Context, error: KvError) -> dict[str, Any]:
    """What an error's JSON has besides its text."""
    if ctx.meta.get(_WRITES) and isinstance(error, ClientError):
        return error.fields | {"maybe_written": error.maybe_written}
    return error.fields


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint that names what is nearly the same; None where nothing is."""
    near = get_close_matches(word, list(known))
    return f"did you mean {' or '.join(near)}?" if near else None


def _remedy(error: OSError) -> str | None:
    """What shows the reason of an error of the operating system."""
    if not isinstance(error.filename, str):
        return None
    match error.errno:
        case errno.ENOENT:
            return f"`ls -la {Path(error.filename).absolute().parent}` shows what is there"
        case errno.EACCES | errno.EPERM:
            return f"`ls -ld {error.filename}` shows who may use it"
        case errno.ENOSPC | errno.EDQUOT:
            return f"`df -h {error.filename}` shows how much room there is"
        case _:
            return None


def report(
    ctx: click.Context, code: str, message: str, *, hint: str | None = None, fields: dict[str, Any] | None = None
) -> None:
    """Print an error to stderr."""
    _report(ctx, "error", code, message, hint, fields)


def warn(ctx: click.Context, code: str, message: str, *, hint: str | None = None) -> None:
    """Print a warning to stderr: the command goes on."""
    _report(ctx, "warning", code, message, hint, None)


def _report(
    ctx: click.Context, kind: str, code: str, message: str, hint: str | None, fields: dict[str, Any] | None
) -> None:
    if ctx.meta.get(_JSON_WANTED):
        members = {"code": code, "message": message, **({"hint": hint} if hint else {}), **(fields or {})}
        click.echo(json.dumps({kind: members}, ensure_ascii=False), err=True)
        return
    click.echo(f"{kind}: {printable(message)} ({code})", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)
