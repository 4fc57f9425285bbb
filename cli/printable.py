"""Text that comes from elsewhere, made safe to show: it stays on its line and commands no terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with escapes for all that does not print: line ends, control codes, marks that turn the direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
