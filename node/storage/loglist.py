"""The list of a log's segments, made from names, headers and the history; of the records only the tail's are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvnode.node.errors import FileDamaged
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Layout, StateFiles
from kvnode.node.storage.logview import Fault, LogPlace, view_log
from kvnode.node.storage.segment import segment_name
from kvnode.protocol.types import Epoch, History, Seq


@dataclass(frozen=True, slots=True)
class ListedSegment:
    """One segment.

    Attributes:
        first_seq: of its first entry, or of the one that it will hold.
        last_seq: of its last entry, first_seq - 1 if it is empty. For a closed segment it is taken from the next one's
            name.
        used_bytes: header and records.
        reserved_bytes: the size of its file.
        epochs: of its entries, oldest first; None if the history is not known.
        is_tail: whether it is the one that is written to.
        fault: what is wrong with its header, or ended the reading of the tail; None if nothing.
    """

    first_seq: Seq
    last_seq: Seq
    used_bytes: int
    reserved_bytes: int
    epochs: tuple[Epoch, ...] | None
    is_tail: bool
    fault: Fault | None

    @property
    def name(self) -> str:
        """The file's name."""
        return segment_name(self.first_seq)


def list_log(fs: Fs, place: LogPlace) -> Iterator[ListedSegment]:
    """The segments in order; those that a running node drops meanwhile are left out.

    Raises:
        UnknownFormat: of a segment.
        OSError: one cannot be read.
    """
    history = _load_history(fs, place.layout)
    view = view_log(fs, place)
    first_seqs = view.first_seqs()
    for first_seq, following in zip(first_seqs, [*first_seqs[1:], None], strict=False):
        try:
            fault, size = view.read_header(first_seq)
            last_seq, used = first_seq - 1, size
            if following is not None:
                last_seq = following - 1
            elif fault is None:
                walk = view.walk(first_seq)
                for _ in walk:
                    pass
                fault, last_seq, used, size = walk.fault, walk.last_seq, walk.end, walk.size
        except FileNotFoundError:
            continue
        epochs = None if history is None else _epochs(history, first_seq, last_seq)
        yield ListedSegment(first_seq, last_seq, used, size, epochs, following is None, fault)


def _load_history(fs: Fs, layout: Layout | None) -> History | None:
    """The history, None if it is not known."""
    if layout is None:
        return None
    try:
        return StateFiles(fs, layout).load_history()
    except FileDamaged:
        # `kvnode wal verify` says so; the rest is still worth showing.
        return None


def _epochs(history: History, first_seq: Seq, last_seq: Seq) -> tuple[Epoch, ...]:
    return tuple(
        reign.epoch
        for reign in history
        if reign.first_seq <= last_seq and (history.end(reign.epoch, last_seq) or 0) >= first_seq
    )
