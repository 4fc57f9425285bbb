"""How a command that fails says so: one line on stderr and an exit code, never a traceback for what can be foreseen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from kvnode.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED
from kvnode.cli.printable import printable
from kvnode.protocol.errors import KvError

_JSON_WANTED = f"{__name__}.json"


def want_json(ctx: click.Context) -> None:
    """Let errors be reported as JSON, too: ``{"error": {"code", "message", ...}}``, the form that REST has."""
    ctx.meta[_JSON_WANTED] = True


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """Run a command inside; turn its failure into a report and `click.exceptions.Exit` with the right code."""
    try:
        yield
        # What the interpreter flushes at its end can no longer be answered for.
        sys.stdout.flush()
    except KvError as error:
        report(ctx, error.code, error.message, hint=error.hint, fields=error.fields)
        raise click.exceptions.Exit(EXIT_FAILED) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Whatever is still buffered would fail again when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(EXIT_PIPE_CLOSED) from None
    except OSError as error:
        message = error.strerror or str(error)
        report(ctx, "os_error", f"{error.filename}: {message}" if error.filename else message)
        raise click.exceptions.Exit(EXIT_FAILED) from error


def report(
    ctx: click.Context, code: str, message: str, *, hint: str | None = None, fields: dict[str, Any] | None = None
) -> None:
    """Print an error to stderr."""
    _report(ctx, "error", code, message, hint, fields)


def warn(ctx: click.Context, code: str, message: str) -> None:
    """Print a warning to stderr: the command goes on."""
    _report(ctx, "warning", code, message, None, None)


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
