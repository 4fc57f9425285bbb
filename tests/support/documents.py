"""Worked examples taken out of the format documents, so that tests can hold the code to them."""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2,}(\S.*))?")


def fenced_blocks(document: Path, language: str) -> list[str]:
    """The contents of all fenced blocks that are marked with a language, in order."""
    text = document.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def parse_hex(block: str) -> tuple[bytes, dict[int, str]]:
    """The bytes of a hex block, whose lines are an offset, bytes and a remark; and the remarks by offset.

    Empty lines are for the eye. The offsets must be right.
    """
    data = b""
    remarks: dict[int, str] = {}
    for line in filter(None, block.splitlines()):
        match = _LINE.fullmatch(line)
        assert match is not None, f"not a line of a hex block: {line!r}"
        assert int(match[1], 16) == len(data), f"the offset is wrong: {line!r}"
        remarks[len(data)] = match[3] or ""
        data += bytes.fromhex(match[2])
    return data, remarks
