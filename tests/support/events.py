"""An event log that keeps what is logged, for tests to look at."""

from __future__ import annotations

from kvnode.node.eventlog import EventLog, FieldValue


class CapturedEvents(EventLog):
    """Keeps the events and writes none.

    Attributes:
        events: (name, fields), in order.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, FieldValue]]] = []

    def info(self, event: str, **fields: FieldValue) -> None:
        self.events.append((event, fields))

    def warning(self, event: str, **fields: FieldValue) -> None:
        self.events.append((event, fields))

    def error(self, event: str, error: BaseException | None = None, **fields: FieldValue) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        """The events' names in order."""
        return [name for name, _ in self.events]

    def fields_of(self, name: str) -> dict[str, FieldValue]:
        """The fields of the only event of this name."""
        (found,) = [fields for event, fields in self.events if event == name]
        return found
