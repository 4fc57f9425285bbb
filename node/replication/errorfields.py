"""What of an error travels beside its code and its message in WRITE_RESULT and READ_RESULT."""

from __future__ import annotations

import msgspec

from kvnode.protocol.errors import KvError

_encode_json = msgspec.json.Encoder(enc_hook=str).encode


def encode_error_fields(error: KvError) -> bytes | None:
    """The further members of the error object that REST would answer, as JSON; None where there are none."""
    fields = dict(error.fields)
    if error.hint is not None:
        fields["hint"] = error.hint
    return _encode_json(fields) if fields else None
