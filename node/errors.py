"""The node's errors, split by who must act: the caller, nobody (wait and retry), the disk's owner.

REST answers `CallerError`, `Unavailable` and `Unresolved` with their `code`; the HTTP status of each code stands in
one table in `kvnode.node.rest.errors`. `StorageError` is what start-up and the offline commands report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from kvnode.protocol.errors import KvError
from kvnode.protocol.types import Epoch, Seq


class ConfigError(KvError):
    """A setting is missing, out of range, or contradicts another; nothing was started."""

    code = "invalid_config"


class JoinRefused(KvError):
    """This node cannot follow the primary that it was told to; nothing was changed."""

    code = "join_refused"

    #: what to do about a refusal of the primary, by its code, where whoever asks knows nothing better
    _HINTS: ClassVar[dict[str, str]] = {
        "name_taken": "choose another name with --name; or, if the node that has it will not return, free it with "
        "`kvnode forget NAME --url URL`, with the primary's URL, then join again",
        "wrong_cluster": "check the address, or join with an empty data directory",
        "duplicate_node": "stop the other process; where the directory is a copy, join with an empty one instead",
        "unsupported_version": "run the same kvnode release on both nodes",
    }

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or self._HINTS.get(code))
        self.code = code


class NameTaken(KvError):
    """Another member of the cluster has the name that this node was given; nothing was changed."""

    code = "name_taken"

    def __init__(self, name: str, present: str) -> None:
        # The list that knows the name is the node's own: it hears of a member that was forgotten only while it runs.
        super().__init__(
            f"another member of the cluster is called {name}",
            hint=f"choose another name with --name, or leave it out to stay {present}; if the node that has it will "
            f"not return, run `kvnode forget {name} --url URL`, with the primary's URL, while this one runs, then try "
            "again",
            name=name,
        )


# ---- the caller must act ---------------------------------------------------------------------------------------


class CallerError(KvError):
    """The request itself is at fault: sent again unchanged it fails again. Nothing was changed."""


class InvalidJson(CallerError):
    """The body is not UTF-8 JSON by RFC 8259."""

    code = "invalid_json"


class InvalidRequest(CallerError):
    """A field or parameter is missing, unknown, of the wrong type or out of range; `field` names it."""

    code = "invalid_request"

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message, **({} if field is None else {"field": field}))


class KeyNotFound(CallerError):
    """No record has this key."""

    code = "key_not_found"

    def __init__(self, key: str) -> None:
        super().__init__("no such key", key=key)


class RouteNotFound(CallerError):
    """No route has this path."""

    code = "route_not_found"


class MethodNotAllowed(CallerError):
    """The path exists, but not for this method; `allow` lists those it has."""

    code = "method_not_allowed"

    def __init__(self, method: str, allow: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not allowed here, use {' or '.join(allow)}", allow=list(allow))
        self.allow = allow


class CrossOrigin(CallerError):
    """A page of another site made a browser send a request that changes something."""

    code = "cross_origin"

    def __init__(self, origin: str) -> None:
        super().__init__(
            "a page of another site cannot change anything here; nothing was written",
            hint="let the site's server talk to the node; a proxy in front of the node has to pass Host on as it is",
            origin=origin,
        )


class TooLarge(CallerError):
    """Something is over a limit; the fields `limit`, `max` and `sent` say which, its value, and what came."""

    code = "too_large"

    def __init__(self, limit: str, maximum: int, sent: int) -> None:
        super().__init__(f"{sent} is over the limit {limit}={maximum}", limit=limit, max=maximum, sent=sent)


class HistoryLost(CallerError):
    """The (epoch, seq) asked for is not in this node's history: the write that it names was lost."""

    code = "history_lost"


class MemberNotFound(CallerError):
    """No member of the cluster has this name."""

    code = "member_not_found"

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no member is called {name}; there are {', '.join(known)}", name=name)


class MemberConnected(CallerError):
    """The member is there: only one that will not return can be forgotten."""

    code = "member_connected"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is connected", hint="stop that node first", name=name)


class AlreadyPrimary(CallerError):
    """The node to be promoted is the primary."""

    code = "already_primary"


class PromotionRefused(CallerError):
    """Promoting this node would lose writes, or make two primaries; `reason` and `members` say what was seen."""

    code = "promotion_refused"


# ---- wait and retry --------------------------------------------------------------------------------------------


class Unavailable(KvError):
    """The node cannot do this now; nothing was changed, and the same request may succeed later.

    Attributes:
        retry_after_s: what to answer as Retry-After, whole seconds, at least 1.
    """

    retry_after_s: int = 1


class Overloaded(Unavailable):
    """More is queued than the admission limit allows."""

    code = "overloaded"


class NoPrimary(Unavailable):
    """No primary is known or reachable."""

    code = "no_primary"


class NotEnoughReplicas(Unavailable):
    """Fewer replicas follow than the write asked acknowledgements from."""

    code = "not_enough_replicas"


class NotCaughtUp(Unavailable):
    """This node has not applied the seq that the read asked for within its wait."""

    code = "not_caught_up"


class Syncing(Unavailable):
    """This node's data is being rebuilt and cannot be served yet."""

    code = "syncing"


class NotPrimary(Unavailable):
    """This node is not the primary."""

    code = "not_primary"


class NotReplica(Unavailable):
    """This node is not a replica."""

    code = "not_replica"


class Draining(Unavailable):
    """The node is stopping and takes no more work."""

    code = "draining"


# ---- the write happened, or may have ---------------------------------------------------------------------------


class Unresolved(KvError):
    """The request was taken, and what became of it is not (fully) known. Never means "not written"."""


class ReplicationTimeout(Unresolved):
    """The write is durable on the primary with `seq`, but not yet where the caller asked for it."""

    code = "replication_timeout"


class OutcomeUnknown(Unresolved):
    """The write may or may not be durable; read it back to find out."""

    code = "outcome_unknown"


# ---- the disk --------------------------------------------------------------------------------------------------


class StorageError(KvError):
    """The data directory or the disk under it needs the operator."""

    code = "storage_error"


class StorageFull(StorageError):
    """The disk is full. The write was not made, nothing of it remains in the log; reads go on."""

    code = "storage_full"


class LogFailed(StorageError):
    """Writing or syncing the log failed in a way that cannot be undone: the node must stop."""

    code = "log_failed"


class EngineFailed(StorageError):
    """LevelDB reported an error; it must be closed, reopened and replayed from the log."""

    code = "engine_failed"

    def __init__(self, message: str, *, disk_full: bool = False) -> None:
        super().__init__(message)
        self.disk_full = disk_full


class EngineClosed(StorageError):
    """The engine was closed under a reader that had not finished; what it read so far is incomplete."""

    code = "engine_closed"


class RecordDamaged(StorageError):
    """LevelDB found stored bytes that fail their checksum: the read has no trustworthy answer."""

    code = "record_damaged"

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="restore the directory as a whole; or, if the log still begins at seq 1 (`kvnode wal ls`), stop the "
            "node, move db/ out of the directory, and start it: LevelDB is made again from the log",
        )


class LogDamaged(StorageError):
    """The log holds damage that cannot be the torn tail of an unacknowledged write.

    Attributes:
        path: the segment file.
        offset: the byte offset at which the damage begins.
        seq: the seq expected there.
    """

    code = "log_damaged"

    def __init__(self, path: Path, offset: int, seq: Seq, reason: str) -> None:
        super().__init__(
            f"{path}: damaged at offset {offset}, where seq {seq} was expected: {reason}",
            hint=f"look at it with `kvnode wal verify {path.parent.parent}`; then either restore "
            f"the directory as a whole, or cut the log there with `kvnode wal repair {path.parent.parent}`, which says "
            "what would be lost and asks first",
            path=str(path),
            offset=offset,
            seq=seq,
        )
        self.path = path
        self.offset = offset
        self.seq = seq
        self.reason = reason


class LogTrimmed(StorageError):
    """Entries that were asked for are no longer in the log.

    Attributes:
        wanted_seq: of the first one asked for.
        first_seq: where the log begins.
    """

    code = "log_trimmed"

    def __init__(self, directory: Path, wanted_seq: Seq, first_seq: Seq) -> None:
        super().__init__(
            f"{directory}: the log begins at seq {first_seq}, not at {wanted_seq}",
            hint="begin at a later seq, or have the node keep more of its log (--wal-keep-bytes)",
            wanted_seq=wanted_seq,
            first_seq=first_seq,
        )
        self.wanted_seq = wanted_seq
        self.first_seq = first_seq


class DataLost(StorageError):
    """The directory's parts do not reach each other: data is missing that no replay can bring back."""

    code = "data_lost"


class FileDamaged(StorageError):
    """One of the directory's small files does not hold what its checksum says."""

    code = "file_damaged"

    def __init__(self, path: Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint, path=str(path))
        self.path = path


class UnknownFormat(StorageError):
    """A file was written in a format version that this program does not know."""

    code = "unknown_format"

    def __init__(self, path: Path, found: object, known: int) -> None:
        super().__init__(
            f"{path}: format version {found}, this program knows version {known}",
            hint="start it with the kvnode release that wrote it, or a newer one",
            path=str(path),
        )


class DirectoryLocked(StorageError):
    """Another process has the data directory open."""

    code = "directory_locked"


def error_of_code(code: str, message: str, fields: dict[str, Any]) -> KvError:
    """The error that another node answered, as one of this node's classes, so that it is answered as if it arose here.

    Args:
        fields: the further members of its error object.
    """
    hint = fields.pop("hint", None)
    cls = _BY_CODE.get(code, OutcomeUnknown)
    error = cls.__new__(cls)
    KvError.__init__(error, message, hint=hint)
    error.fields = fields
    error.code = code if code in _BY_CODE else OutcomeUnknown.code
    return error


#: What a primary answers to a forwarded write, by code.
_BY_CODE: dict[str, type[KvError]] = {
    cls.code: cls
    for cls in (
        InvalidJson,
        InvalidRequest,
        TooLarge,
        Overloaded,
        NotEnoughReplicas,
        Syncing,
        NotPrimary,
        Draining,
        StorageFull,
        ReplicationTimeout,
        OutcomeUnknown,
    )
}


def history_lost(epoch: Epoch, seq: Seq) -> HistoryLost:
    """The error for a token (epoch, seq) that is not part of this node's history."""
    return HistoryLost(f"{epoch}-{seq} is not in this node's history", epoch=str(epoch), seq=seq)
