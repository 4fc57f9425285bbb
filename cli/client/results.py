"""What the client's calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from kvnode.cli.client.jsonvalues import JsonText
from kvnode.protocol.types import Position


class Written(NamedTuple):
    """A write that is durable.

    Attributes:
        position: (epoch, seq) of its entry.
    """

    position: Position


class Deleted(NamedTuple):
    """What a delete came to.

    Attributes:
        deleted: whether the key existed.
        position: of the delete's entry; the applied position where there was nothing to delete.
    """

    deleted: bool
    position: Position


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value.

    Attributes:
        text: JSON text, byte for byte as it was stored.
        version: the entry that wrote it.
        applied: the position that the read saw.
    """

    text: JsonText
    version: Position
    applied: Position

    @property
    def value(self) -> Any:
        """The value as a Python object, made at each access; see `JsonText.decode_value` for when there is none."""
        return self.text.decode_value()


@dataclass(frozen=True, slots=True)
class RangeItem:
    """A key of a range with its value.

    Attributes:
        key: the key.
        text: JSON text as it was stored, but for line breaks between its tokens, which are spaces here.
    """

    key: str
    text: JsonText

    @property
    def value(self) -> Any:
        """The value as a Python object, made at each access; see `JsonText.decode_value` for when there is none."""
        return self.text.decode_value()


class Status(NamedTuple):
    """A node's account of itself.

    Attributes:
        text: the JSON object as the node sent it.
        fields: the same, decoded.
        url: of the node.
    """

    text: bytes
    fields: dict[str, Any]
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuery:
    """Which keys a range read is about; by default all, lowest first.

    Attributes:
        start: lowest key wanted, inclusive; None for no bound.
        end: highest key wanted, inclusive; None for no bound.
        prefix: only keys that begin with it.
        limit: at most this many items, at least 1; None for all.
        reverse: highest key first.
    """

    start: str | None = None
    end: str | None = None
    prefix: str = ""
    limit: int | None = None
    reverse: bool = False

    def parameters(self) -> dict[str, str]:
        """The query of the request, without what is left at its default."""
        given = {
            "start_key": self.start,
            "end_key": self.end,
            "prefix": self.prefix or None,
            "limit": None if self.limit is None else str(self.limit),
            "reverse": "true" if self.reverse else None,
        }
        return {name: text for name, text in given.items() if text is not None}
