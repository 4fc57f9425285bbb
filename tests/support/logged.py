"""Entries as the log's fast reader gives them, turned back into plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvnode.node.fs import Fs
from kvnode.node.storage.replay import read_segments
from kvnode.node.storage.wal import Segment
from kvnode.protocol.entry import LoggedEntry, decode_entry
from kvnode.protocol.types import Entry


def entry_of(logged: LoggedEntry) -> Entry:
    """The entry that it stands for."""
    return decode_entry(msgspec.msgpack.encode(logged))


def entries_in(fs: Fs, directory: Path, segments: Sequence[Segment]) -> list[Entry]:
    """All entries of whole segments."""
    return [entry_of(logged) for stretch in read_segments(fs, directory, segments) for logged in stretch.entries]
