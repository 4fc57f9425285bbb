"""The node's log: one event a line on stderr, ``event=... key=value`` or JSON, without payloads."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec

#: What an event's field may be; anything else is shown by its ``str``.
FieldValue = str | int | float | bool | None | object


class EventLog:
    """Writes events through one standard-library logger, so that handlers and tests can capture them."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, event: str, **fields: FieldValue) -> None:
        """Something an operator may want to know about."""
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: FieldValue) -> None:
        """Something an operator should look at in the morning."""
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, error: BaseException | None = None, **fields: FieldValue) -> None:
        """Something an operator must act on. With `error`, a traceback follows: for bugs, not for expected failures."""
        self._logger.error(event, extra={"fields": fields}, exc_info=error)


def open_event_log(log_format: str, stream: TextIO | None = None) -> EventLog:
    """The log of this process.

    Args:
        log_format: "text" or "json".
        stream: stderr when None.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logger = logging.getLogger("kvnode")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [handler]
    return EventLog(logger)


def _fields(record: logging.LogRecord) -> dict[str, FieldValue]:
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    extra: dict[str, FieldValue] = getattr(record, "fields", {})
    shown = {name: _shown(value) for name, value in extra.items()}
    return {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **shown}


def _shown(value: FieldValue) -> FieldValue:
    """A value that both forms show in the same way, and UTF-8 can carry."""
    if value is None or type(value) in (bool, int, float):
        return value
    return _encodable(str(value))


def _encodable(text: str) -> str:
    """The text with lone surrogates, as file names that are not UTF-8 have, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _TextLines(logging.Formatter):
    """``time=... level=info event=listening http=127.0.0.1:5001``; values with spaces or quotes are JSON strings."""

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(f"{name}={_text(value)}" for name, value in _fields(record).items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonLines(logging.Formatter):
    """One JSON object a line; a traceback is its member ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        if record.exc_info:
            fields["traceback"] = _encodable(self.formatException(record.exc_info))
        return msgspec.json.encode(fields).decode()


def _text(value: FieldValue) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and all(33 <= ord(char) < 127 and char not in '"=' for char in text):
        return text
    return msgspec.json.encode(text).decode()
