"""The root of kvnode's exception tree, and the errors of the shared entry and wire formats.

The tree splits by who must act:

    KvError
    ├── LocalProtocolError      this program misused the protocol: a bug here
    ├── RemoteProtocolError     the peer (or the bytes it sent) broke the protocol
    └── kvnode.node.errors      the caller, the disk, or the operator must act
"""

from __future__ import annotations

from typing import Any


class KvError(Exception):
    """The root of every error that kvnode raises on purpose.

    Attributes:
        code: a stable identifier that clients and scripts may match on; it never changes meaning.
        hint: what to do about it, or None when the message says all there is.
    """

    code: str = "internal"
    #: extra members of the JSON error object, by field name
    fields: dict[str, Any]

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class LocalProtocolError(KvError):
    """This program asked the protocol code for something that the protocol does not allow."""

    code = "local_protocol_error"


class RemoteProtocolError(KvError):
    """Bytes that came from elsewhere do not follow the format; nothing of them was used."""

    code = "protocol_error"


class EntryDamaged(RemoteProtocolError):
    """An entry's bytes do not decode to an entry, or do not match their CRC."""

    code = "entry_damaged"
