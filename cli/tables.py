"""Tables for people: the same look in all commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kvnode.cli.printable import printable

#: What a pipe or a file gets in place of a terminal's width: lines there need not be folded for anybody's window.
_PIPE_COLUMNS = 200


class _Console(Console):
    """A console that leaves it to the command what a reader who has left comes to."""

    def on_broken_pipe(self) -> None:
        # Called where BrokenPipeError was caught. Rich itself ends the process with exit code 1.
        raise  # noqa: PLE0704


class _Trimmed:
    """Something to be printed, without the blanks that fill its lines up."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._renderable, options, pad=False):
            while line and not line[-1].text.strip(" "):
                line.pop()
            if line:
                last = line.pop()
                line.append(Segment(last.text.rstrip(" "), last.style, last.control))
            yield from line
            yield Segment.line()


class _Trimming(RenderHook):
    """Lets a console print everything trimmed: a pipe or a file needs no full lines."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Trimmed(each) for each in renderables]


def make_console() -> Console:
    """A console on stdout, which takes what is printed for plain text, not for markup."""
    is_terminal = sys.stdout.isatty()
    console = _Console(highlight=False, markup=False, width=None if is_terminal else _PIPE_COLUMNS)
    if not is_terminal:
        console.push_render_hook(_Trimming())
    return console


def plain(value: object, style: str = "") -> Text:
    """What a node sends, as text that is neither markup nor a terminal's command; None is shown as ``-``."""
    return Text("-" if value is None or value == "" else printable(str(value)), style=style)


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, numbers: Iterable[str] = ()
) -> Table:
    """A table without lines. Cells are values as `plain` takes them, or Text.

    Args:
        numbers: headings of the columns that are aligned to the right.
    """
    right = frozenset(numbers)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in row))
    return table


def make_summary(lines: Iterable[tuple[str, object]], *, label_columns: int = 0) -> Table:
    """Lines of a label and a value, which is taken as a cell of `make_table` is.

    Args:
        label_columns: the least width of the labels, so that summaries below each other can be aligned.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=label_columns)
    table.add_column(overflow="fold")
    for label, value in lines:
        table.add_row(label, value if isinstance(value, Text) else plain(value))
    return table
