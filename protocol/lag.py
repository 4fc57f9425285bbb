"""Which members have been behind for so long, without a session that could say so, that an operator should know.

The machine of a session raises the alarm for a replica that falls behind while it streams. This is about the others: a
member that is away, or that comes back again and again and gets nowhere.
"""

from __future__ import annotations


class LagWatch:
    """Says once of each member that it does not follow, until it follows again."""

    def __init__(self, now: float, lag_s: float = 5.0) -> None:
        """All members are given `lag_s` seconds from now on."""
        self._began_at = now
        self._lag_s = lag_s
        #: when a member was last seen to follow
        self._followed_at: dict[bytes, float] = {}
        self._told: set[bytes] = set()

    def look(self, node_id: bytes, *, follows: bool, now: float) -> float | None:
        """Take note of how a member is; to be asked every second or so.

        Args:
            follows: whether it lacks nothing, or a session of it is fine or looks after itself.

        Returns:
            For how long it has not followed, in seconds, if that is to be told now; else None.
        """
        if follows:
            self._followed_at[node_id] = now
            self._told.discard(node_id)
            return None
        lacking_s = now - self._followed_at.get(node_id, self._began_at)
        if lacking_s < self._lag_s or node_id in self._told:
            return None
        self._told.add(node_id)
        return lacking_s

    def forget(self, node_id: bytes) -> None:
        """It is no member any more."""
        self._followed_at.pop(node_id, None)
        self._told.discard(node_id)
