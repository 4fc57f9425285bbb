"""What one client has seen, so that each of its reads shows that, whichever node answers.

A position is (epoch, seq), ordered by epoch first: a later reign counts as further even where its numbers are lower.
With `min_seq` and `epoch` of the furthest position a node waits until it has that entry, and answers 409 `history_lost`
if it never will.

That alone would overlook a loss. A client wrote (1, 100); its primary died, and a replica that ended at 90 was
promoted; the client's next write is (2, 250), because others wrote meanwhile. Every node of the new reign has (2, 250),
so reads that ask for it succeed, and nobody notices that (1, 100) is gone. So what was seen in an earlier reign is
**unproven** until a node of the newest reign has said that it is part of its history. A read proves what it asked for;
writes ask for nothing.
"""

from __future__ import annotations

from kvnode.protocol.types import Epoch, Position, Seq


class Session:
    """The positions that one client saw. They only move forward, in whatever order concurrent answers come in.

    Attributes:
        position: the furthest; None before the first.

    Invariant: the epochs of `unproven` are all below that of `position`, and each stands there once.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self._unproven: dict[Epoch, Seq] = {}

    @property
    def unproven(self) -> tuple[Position, ...]:
        """What was seen in earlier reigns and is not known to be part of the newest, oldest reign first."""
        return tuple(Position(epoch, seq) for epoch, seq in sorted(self._unproven.items()))

    def saw(self, position: Position, proven: Position | None = None) -> None:
        """Take in the position of an answer.

        Args:
            position: of a write its own, of a read the one it saw.
            proven: what the request asked for, and is therefore part of the answering node's history.
        """
        previous = self.position
        if previous is None or position.epoch == previous.epoch:
            self.position = position if previous is None else max(previous, position)
        else:
            older, self.position = sorted((previous, position))
            if older.seq:
                self._unproven[older.epoch] = max(older.seq, self._unproven.get(older.epoch, 0))
        # Only a node that is in the newest reign can say what that reign began with.
        if (
            proven is not None
            and self.position.epoch == position.epoch
            and self._unproven.get(proven.epoch, proven.seq + 1) <= proven.seq
        ):
            del self._unproven[proven.epoch]

    def forget(self) -> None:
        """Begin anew: nothing was seen."""
        self.position = None
        self._unproven.clear()


def parse_position(text: str) -> Position:
    """Read what `str` of a position printed, such as ``3.9f2c1a7b-42``.

    Raises:
        ValueError: the text is none.
    """
    epoch, _, seq = text.rpartition("-")
    try:
        if seq.isascii() and seq.isdigit():
            return Position(Epoch.parse(epoch), int(seq))
    except ValueError:
        pass
    raise ValueError(f"not a position, expected EPOCH-SEQ such as 3.9f2c1a7b-42: {text!r}")
