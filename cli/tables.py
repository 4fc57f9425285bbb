"""Tables for people: the same look in all commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: What a pipe or a file gets in place of a terminal's width: lines there need not be folded for anybody's window.
_PIPE_COLUMNS = 200


def make_console() -> Console:
    """A console on stdout, which takes what is printed for plain text, not for markup."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def make_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A table without lines; None is shown as ``-``."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # As plain text: what a node sends is no markup.
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    return table
