"""The small files of the data directory: one checksummed, versioned JSON object each, replaced atomically.

Source: FORMAT.md, "Small files".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from kvnode.node.errors import FileDamaged, UnknownFormat
from kvnode.node.fs import Fs, read_file, replace_file

FORMAT_VERSION = 1

_FORMAT = "format"
_CRC = "crc32"


def save_state(fs: Fs, path: Path, state: dict[str, Any]) -> None:
    """Replace the file by `state`, durably; after a crash either the old or the new content is there.

    Args:
        state: JSON values by name; the names ``format`` and ``crc32`` are taken.

    Raises:
        OSError: the disk failed; the old content may or may not have been replaced.
    """
    replace_file(fs, path, encode_state(state))


def encode_state(state: dict[str, Any]) -> bytes:
    """The file's content for `state`: one line of JSON."""
    body = {_FORMAT: FORMAT_VERSION, **state}
    return msgspec.json.encode({**body, _CRC: _checksum(body)}) + b"\n"


def load_state(fs: Fs, path: Path) -> dict[str, Any] | None:
    """What the file holds, without the names ``format`` and ``crc32``; None when there is no such file.

    Raises:
        FileDamaged: it does not match its checksum.
        UnknownFormat: it is intact, and of another format version.
        OSError: it cannot be read.
    """
    if not fs.exists(path):
        return None
    try:
        body: Any = msgspec.json.decode(read_file(fs, path))
        intact = isinstance(body, dict) and body.pop(_CRC, None) == _checksum(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileDamaged(path, f"damaged: not JSON ({error})") from error
    if not intact:
        raise FileDamaged(path, "damaged: the content does not match its checksum")
    version = body.pop(_FORMAT, None)
    if version != FORMAT_VERSION:
        raise UnknownFormat(path, version, FORMAT_VERSION)
    state: dict[str, Any] = body
    return state


def _checksum(body: dict[str, Any]) -> str:
    """CRC-32 of the canonical form (names sorted, no spaces), 8 hex digits."""
    return f"{crc32(msgspec.json.encode(body, order='sorted')):08x}"
