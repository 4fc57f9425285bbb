"""Commands with their answers, as README shows them: read from the page, run in order, compared with what came.

An example is an indented block in which a line that begins with ``$ `` is a command. It goes on in the next line where
it ends with a backslash, a pipe, or an open quote. What follows, up to the next command or the end of the block, is its
output.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

_INDENT = "    "
_PROMPT = "$ "

#: What is another one each time: an epoch's random half, ids, times, how long something took, what a machine has.
_CHANGING = tuple(
    (re.compile(pattern), shown)
    for pattern, shown in (
        (r"\b[0-9a-f]{32}\b", "<id>"),
        (r"\b(\d+)\.[0-9a-f]{8}\b", r"\1.<random>"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>"),
        (r'("(?:uptime_s|lag_s)":)[0-9.]+', r"\1<seconds>"),
        (r'("(?:bytes|hits|misses)":)[0-9]+', r"\1<number>"),
    )
)
#: Stands in a page for text that it leaves out.
_ELISION = "..."


@dataclass(frozen=True, slots=True)
class Example:
    """A command of a page.

    Attributes:
        line: where in the page it stands, from 1.
        command: of a shell; may have several lines.
        output: the lines that the page shows after it.
    """

    line: int
    command: str
    output: tuple[str, ...]


def examples(page: str) -> Iterator[Example]:
    """The commands of a page, in its order."""
    lines = [line.removeprefix(_INDENT) if line.startswith(_INDENT) else None for line in page.splitlines()]
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line is None or not line.startswith(_PROMPT):
            continue
        first, command = number, line.removeprefix(_PROMPT)
        while _goes_on(command):
            following = lines[number]
            assert following is not None, f"line {first}: the command has no end"
            command += f"\n{following}"
            number += 1
        output = []
        while number < len(lines) and (shown := lines[number]) is not None and not shown.startswith(_PROMPT):
            output.append(shown)
            number += 1
        yield Example(first, command, tuple(output))


def matches(shown: tuple[str, ...], came: str) -> bool:
    """Whether an output is the one that the page shows, but for what changes each time and what the page leaves out."""
    pattern = ".*".join(map(re.escape, _settled("\n".join(shown)).split(_ELISION)))
    return re.fullmatch(pattern, _settled(came.rstrip("\n")), re.DOTALL) is not None


def _goes_on(command: str) -> bool:
    if command.endswith(("\\", "|")):
        return True
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


def _settled(text: str) -> str:
    for pattern, shown in _CHANGING:
        text = pattern.sub(shown, text)
    return text
