"""The composition root: builds every part of a node, runs it until a signal or a failure, and stops it in order."""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import gc
import os
import secrets
import signal
import sys
import threading
from collections.abc import Coroutine, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import uvloop

from kvnode.node.api import NewestEntries
from kvnode.node.clock import Clock, RealClock
from kvnode.node.config import Address, Config
from kvnode.node.descriptors import own_files, raise_open_files, share
from kvnode.node.errors import Draining, StorageError, Syncing, Unavailable
from kvnode.node.eventlog import EventLog, open_event_log
from kvnode.node.fs import Fs, RealFs
from kvnode.node.joining import join, later_term
from kvnode.node.remedies import directory_remedy, listening_remedy
from kvnode.node.replication.cluster import Cluster
from kvnode.node.replication.logtail import LogTail
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.admission import MAX_SURPLUS
from kvnode.node.rest.front import RestFront
from kvnode.node.startup import OpenedDirectory, begin_reign, make_data_directory, open_directory, remember_later
from kvnode.node.storage.datadir import DirectoryLock, Layout
from kvnode.node.storage.leveldb import leveldb_factory
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.replay import reopen_engine
from kvnode.node.store import Store
from kvnode.node.watching import counters, newest_entries
from kvnode.node.worker import Worker
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import ID_BYTES
from kvnode.protocol.types import Position

if TYPE_CHECKING:
    from kvnode.node.measures import NodeMetrics

#: A thread that comes back from the disk waits for the interpreter at most this long. The default of 5 ms would be
#: added to nearly every commit under load; see tests/bench.
_SWITCH_INTERVAL_S = 0.0005

#: Milestones of a stop, in seconds after the signal: waits end, clients that have not taken their answers are cut off,
#: everything has to be closed.
_WAITS_END_S = 8.0
_CLIENTS_END_S = 8.5
_STOPPED_S = 9.5

#: How long replicas get to take the last entries.
_REPLICAS_S = 1.0

#: When a stop that is stuck inside LevelDB, where no other thread can run, is ended from outside of Python.
_STUCK_S = 10.0

#: How long clients get to receive their answers after a failure that ends the process.
_LAST_ANSWERS_S = 1.0


def run(config: Config, join: Address | None = None) -> int:
    """Run a node until it is told to stop, and end the process: with 0 after a clean stop, with 1 after anything else.

    Args:
        join: the peer address of the primary that the node is to follow from now on; None = what the directory says.

    Returns:
        1, if the data directory cannot be had.
    """
    log = open_event_log(config.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    fs = RealFs()
    layout = Layout(config.data)
    try:
        make_data_directory(fs, layout)
        # Held until the process ends.
        DirectoryLock(layout.lock)
    except (KvError, OSError) as error:
        return _refused(error, config, log)
    _warn_of_open_doors(config, log)
    code = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(config, fs, join, log))
    # The loop and the interpreter are not torn down: after a failure, threads may still be inside LevelDB or the disk;
    # and one may always wait for a name that nobody answers for, longer than a stop may take.
    sys.stderr.flush()
    os._exit(code)


async def _serve(config: Config, fs: Fs, primary: Address | None, log: EventLog) -> int:
    """Open the directory, in the role that it has or is to have, and run the node."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _log_loop_error(log, context))
    stop: asyncio.Future[str] = loop.create_future()

    def request_stop(name: str) -> None:
        if not stop.done():
            stop.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, request_stop, number.name)
    try:
        if primary is not None and not await _unless(stop, join(config, fs, primary, log)):
            log.info("stopped", reason="told to, before the primary was reached")
            return 0
        open_engine = leveldb_factory(config)
        opened = open_directory(config, fs, open_engine, log)
        if opened.identity.role == "primary" and opened.superseded_term is None:
            later, seen_term = await later_term(opened, log)
            if later is None:
                begin_reign(opened, log, seen_term)
            else:
                remember_later(opened, later)
        gc.freeze()
        reopen = functools.partial(reopen_engine, fs, Layout(config.data), open_engine)
        node = Node(config, opened, reopen, RealClock(), log, joining=primary is not None)
    except (KvError, OSError) as error:
        return _refused(error, config, log)
    stop.add_done_callback(lambda done: node.request_stop(done.result()))
    return await node.run()


def _log_loop_error(log: EventLog, context: Mapping[str, Any]) -> None:
    """Tell of what nobody has caught as an event: asyncio's own handler would write lines that are none."""
    source = context.get("task") or context.get("future")
    log.error("loop_error", error=context.get("exception"), reason=context["message"], source=source)


async def _unless(stop: asyncio.Future[str], work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before `stop` was; it is cancelled otherwise."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    waited: list[asyncio.Future[Any]] = [stop, task]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return False
    task.result()
    return True


def _refused(error: KvError | OSError, config: Config, log: EventLog) -> int:
    if isinstance(error, KvError):
        log.error("start_refused", code=error.code, reason=error.message, hint=error.hint)
    else:
        log.error("start_refused", code="os_error", reason=str(error), hint=directory_remedy(config.data, error))
    return 1


class Node:
    """One running node; implements `kvnode.node.api.NodeApi`."""

    def __init__(
        self,
        config: Config,
        opened: OpenedDirectory,
        reopen: Any,
        clock: Clock,
        log: EventLog,
        *,
        joining: bool = False,
    ) -> None:
        """Build the parts on the running loop; `run` opens the doors.

        Args:
            joining: whether a refusal by the primary ends the node, as long as it has not followed it.
        """
        loop = asyncio.get_running_loop()
        self._config = config
        self._clock = clock
        self._log = log
        self._started_s = clock.monotonic_s()
        self._version = metadata.version("kvnode")
        self._stop_reason: str | None = None
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self.store = Store(
            config,
            opened.storage,
            opened.files,
            reopen,
            clock,
            log,
            self._failed,
            functools.partial(LogReader, opened.fs),
        )
        self._shared = Shared(
            config=config,
            store=self.store,
            files=opened.files,
            identity=opened.identity,
            clock=clock,
            log=log,
            loop=loop,
            boot_id=secrets.token_bytes(ID_BYTES),
            tail=LogTail(),
            disk=Worker("kvnode-disk", loop),
            log_reads=Worker("kvnode-feed", loop),
            snapshot_reads=Worker("kvnode-sync", loop),
        )
        self.cluster = Cluster(
            self._shared,
            self.store,
            opened.replica_files,
            self.status,
            self._failed,
            superseded_term=opened.superseded_term,
            joining=joining,
        )
        served, surplus = _rest_connections(config, log)
        self.front = RestFront(config, self.cluster, self, log, max_connections=served, max_surplus=surplus)
        self._space = functools.partial(opened.fs.space, config.data)
        self._metrics: NodeMetrics | None = None

    def request_stop(self, reason: str) -> None:
        """Begin a clean stop."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._stop.set()

    async def run(self) -> int:
        """Serve until a stop is requested or the store fails; returns the exit code."""
        wanted = ("peer", self._config.peer)
        try:
            peer = await self.cluster.start()
            wanted = ("http", self._config.http)
            http = await self.front.start()
        except OSError as error:
            hint = listening_remedy(*wanted, error)
            fields = {wanted[0]: wanted[1], "reason": error.strerror or str(error), "hint": hint}
            self._log.error("listen_failed", None, **fields)
            await self.cluster.stop()
            await self._close_store(_STOPPED_S)
            return 1
        except StorageError as error:
            await self.cluster.abandon()
            return _refused(error, self._config, self._log)
        identity = self._shared.identity
        self._log.info("listening", http=http, peer=peer, name=identity.name, role=identity.role)
        threading.Thread(target=_import_late, name="kvnode-import", daemon=True).start()
        await self._stop.wait()
        faulthandler.dump_traceback_later(_STUCK_S, exit=True)
        try:
            return await (self._stop_cleanly() if self._failure is None else self._stop_after_failure())
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def _stop_cleanly(self) -> int:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._log.info("stopping", reason=self._stop_reason)
        self.front.stop_accepting()
        self.cluster.stop_accepting()
        self.store.stop_writes()
        ending = loop.call_later(_WAITS_END_S, self._end_waits)
        try:
            async with asyncio.timeout(_WAITS_END_S):
                await self.store.drain()
        except TimeoutError:
            self._log.error("drain_timeout", queued_bytes=self.store.queued_bytes)
        await self.cluster.drain(_REPLICAS_S)
        await self.front.close(max(0.1, began_s + _CLIENTS_END_S - loop.time()))
        ending.cancel()
        try:
            async with asyncio.timeout_at(began_s + _STOPPED_S):
                await self.cluster.stop()
        except TimeoutError:
            self._log.error("stop_incomplete", reason="work for a replica did not end in time")
            return 1
        closed = await self._close_store(max(0.1, began_s + _STOPPED_S - loop.time()))
        if self._failure is not None or not closed:
            return 1
        self._log.info("stopped", seconds=loop.time() - began_s)
        return 0

    def _end_waits(self) -> None:
        self.store.end_waits()
        self.cluster.end_waits()

    async def _close_store(self, timeout_s: float) -> bool:
        self.store.stop_writes()
        return await self.store.close(timeout_s)

    async def _stop_after_failure(self) -> int:
        self.front.stop_accepting()
        self.cluster.stop_accepting()
        await self.front.close(_LAST_ANSWERS_S)
        await self.cluster.abandon()
        return 1

    def _failed(self, error: BaseException) -> None:
        if self._failure is not None:
            return
        self._failure = error
        if isinstance(error, KvError):
            self._log.error("node_failed", code=error.code, reason=error.message, hint=error.hint)
        else:
            self._log.error("node_failed", error, code="internal", reason=repr(error))
        self._stop.set()

    # ---- what the operator's routes ask ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        store, cache = self.store, self.store.cache
        segments = store.wal.segments
        last_seq = store.wal.last_seq
        return {
            "name": self._shared.identity.name,
            "role": self._shared.identity.role,
            "cluster_id": self._shared.identity.cluster_id,
            "epoch": str(store.epoch),
            "last_seq": last_seq,
            "durable_seq": last_seq if self._config.fsync == "always" else store.checkpoint_seq,
            "applied_seq": store.applied.seq,
            "uptime_s": round(self._clock.monotonic_s() - self._started_s, 3),
            "version": self._version,
            "wal": {
                "first_seq": segments[0].first_seq,
                "last_seq": last_seq,
                "segments": len(segments),
                "bytes": sum(segment.end for segment in segments),
            },
            "cache": {
                "entries": cache.entries,
                "bytes": cache.bytes,
                "hits": cache.hits,
                "misses": cache.misses,
            },
            **self.cluster.status(),
        }

    def watched(self) -> dict[str, Any]:
        status = self.status()
        cluster = self.cluster.picture(status)
        return status | counters(self.store, self._clock) | {"not_ready": self._why_not_ready(), "cluster": cluster}

    def newest_entries(self, after: Position | None) -> NewestEntries:
        return newest_entries(self.store, self._shared.tail, after)

    def _why_not_ready(self) -> dict[str, str] | None:
        try:
            self.check_ready(None)
        except Unavailable as error:
            return {"code": error.code, "message": error.message}
        return None

    def check_ready(self, max_lag: int | None) -> None:
        if self._stop.is_set():
            raise Draining("this node is stopping")
        if not self.store.serving:
            raise Syncing("this node's data are not ready to be served")
        self.cluster.check_ready(max_lag)

    def check_role(self, role: str) -> None:
        self.cluster.check_role(role)

    async def promote(self, *, force: bool) -> dict[str, Any]:
        return await self.cluster.promote(force=force)

    async def forget(self, name: str) -> None:
        await self.cluster.forget(name)

    async def render_metrics(self, accept: str) -> tuple[str, bytes]:
        if self._metrics is None:
            # On a thread: the loop must not wait for the disk that the modules are on.
            await asyncio.to_thread(_import_late)
        if self._metrics is None:
            from kvnode.node.measures import NodeMetrics

            self._metrics = NodeMetrics(
                self._version,
                self._shared,
                self.store,
                self.cluster,
                self.front,
                functools.partial(self.check_ready, None),
                self._space,
            )
        return await self._metrics.render(accept)


def _rest_connections(config: Config, log: EventLog) -> tuple[int, int]:
    """(to be served, to be refused) at a time, with as many open files as the process may have."""
    wanted = own_files(config) + config.max_connections + MAX_SURPLUS
    limit = raise_open_files(wanted)
    served, surplus = share(limit, config, MAX_SURPLUS)
    if served < config.max_connections:
        hint = f"raise the limit of open files (`ulimit -n`) to {wanted}, or lower --max-connections"
        log.warning("few_open_files", limit=limit, max_connections=served, hint=hint)
    return served, surplus


def _import_late() -> None:
    """Import what no start has to wait for: what renders metrics, with a Prometheus library, and the API's document.

    Not as late as the first request for it: the installed code may be that of another release by then.
    """
    import kvnode.node.measures
    import kvnode.node.rest.openapi.document  # noqa: F401


def _warn_of_open_doors(config: Config, log: EventLog) -> None:
    for name, address in (("http", config.http), ("peer", config.peer)):
        if not address.is_loopback:
            log.warning(
                "open_without_credentials",
                **{name: address},
                reason="there is no authentication: anybody who reaches this address can read, write and delete "
                "everything",
            )
