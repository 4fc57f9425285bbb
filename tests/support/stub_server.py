"""A stand-in for a node: the REST contract over a dict, which can be told to answer wrongly.

It shares no code with the node or the client, so that a misunderstanding shows. `faults` says what the next
requests of a route meet instead of the usual answer; `open` makes them wait; `requests` remembers what came.
"""

import asyncio
import json
from collections import defaultdict, deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from support.background import in_background

EPOCH = "1.0badcafe"
MAX_KEY_BYTES = 4096
MAX_VALUE_BYTES = 4 * 1024 * 1024

_decoder = json.JSONDecoder()


@dataclass(frozen=True)
class Answer:
    """Answer with this error."""

    status: int
    code: str
    retry_after: int | None = None
    #: whether the write happens all the same
    is_written: bool = False
    #: more members of the error object
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """Close the connection without an answer."""

    is_written: bool = False


@dataclass(frozen=True)
class CutStream:
    """Close the connection after that many records of a range, and some bytes of the next one."""

    after_records: int
    #: what it waits for before it does so
    when: asyncio.Event | None = None


@dataclass(frozen=True)
class Say:
    """Answer 200 with this body, whatever it is."""

    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


Fault = Answer | Cut | CutStream | Say


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    raw_path: str
    body: bytes
    headers: dict[str, str]


class Refused(Exception):
    """The request is answered with this error."""

    def __init__(self, status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": code, "message": message, **fields}


class StubServer:
    """One stub node. `async with StubServer()` runs it on the present loop, `in_thread()` on one of its own."""

    def __init__(self) -> None:
        self.seq = 0
        self.epoch = EPOCH
        #: epoch -> its last seq, of the reigns before the present one
        self.earlier: dict[str, int] = {}
        #: key -> (seq that wrote it, JSON text)
        self.records: dict[str, tuple[int, str]] = {}
        #: by route, such as /batchput
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.requests: list[Seen] = []
        self.status: dict[str, Any] = {"name": "stub", "role": "primary", "applied_seq": 0}
        #: as /cluster/promote tells of them
        self.members: list[dict[str, Any]] = []
        self.url = ""
        self.in_flight = 0
        self.most_in_flight = 0
        #: cleared: /batchput waits before it does anything
        self.open = asyncio.Event()
        self.open.set()
        #: released once for each /batchput that has arrived
        self.arrived = asyncio.Semaphore(0)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:(?s:.*)}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, max_line_size=64 * 1024)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.open.set()
        await self._runner.cleanup()

    def in_thread(self) -> AbstractContextManager[Self]:
        """Run the stub on a loop and thread of its own while the block lasts."""
        return in_background(self)

    def values(self) -> dict[str, str]:
        """Key -> JSON text."""
        return {key: text for key, (_, text) in self.records.items()}

    def bodies(self, route: str) -> list[bytes]:
        """The bodies that came on a route, in the order of arrival."""
        return [seen.body for seen in self.requests if seen.raw_path.partition("?")[0] == route]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(Seen(request.method, request.raw_path, body, dict(request.headers)))
        parts = request.raw_path.split("?")[0].split("/")
        route = "/".join(parts[:3] if parts[1] == "cluster" else parts[:2])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if route == "/batchput":
                self.arrived.release()
                await self.open.wait()
            return await self._answer(request, route, body)
        except Refused as refused:
            return self._json({"error": refused.error}, status=refused.status)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, route: str, body: bytes) -> web.StreamResponse:
        fault = self.faults[route].popleft() if self.faults[route] else None
        match fault:
            case Answer(status, code, retry_after, is_written, fields):
                if is_written:
                    self._route(request, route, body)
                headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
                error = {"code": code, "message": f"told to answer {code}", "told": True, **fields}
                return self._json({"error": error}, status=status, headers=headers)
            case Cut(is_written):
                if is_written:
                    self._route(request, route, body)
                assert request.transport is not None
                request.transport.close()
                raise asyncio.CancelledError
            case Say(said, content_type, headers):
                return web.Response(body=said, content_type=content_type, headers=headers)
        self._check_token(request)
        if route == "/readrange":
            return await self._read_range(request, fault)
        return self._route(request, route, body)

    def _route(self, request: web.Request, route: str, body: bytes) -> web.Response:
        match request.method, route:
            case "POST", "/put":
                item = _item(body.decode())
                self._write([item])
                return self._json({"status": "OK", "key": item[0], "seq": self.seq})
            case "POST", "/batchput":
                items = _items(body.decode())
                self._write(items)
                return self._json({"status": "OK", "count": len(items), "seq": self.seq})
            case "POST", "/delete":
                key = json.loads(body)["key"]
                is_there = self.records.pop(key, None) is not None
                self.seq += is_there
                return self._json({"status": "OK", "key": key, "deleted": is_there, "seq": self.seq})
            case "GET", "/read":
                return self._read(request.match_info["tail"].removeprefix("read/"))
            case "POST", "/cluster/promote":
                assert json.loads(body).keys() == {"force"}
                return self._json(
                    {"status": "OK", "name": "stub", "epoch": self.epoch, "last_seq": self.seq, "members": self.members}
                )
            case "POST", "/cluster/forget":
                name = json.loads(body)["name"]
                if name not in [member["name"] for member in self.members]:
                    raise Refused(404, "member_not_found", "no such member", name=name)
                self.members = [member for member in self.members if member["name"] != name]
                return self._json({"status": "OK", "name": name})
            case "GET", "/status":
                return self._json(self.status)
        raise Refused(404, "route_not_found", f"no route {request.path}")

    def _check_token(self, request: web.Request) -> None:
        """Refuse a read that asks for an entry which is not here."""
        if "min_seq" not in request.query:
            return
        seq, epoch = int(request.query["min_seq"]), request.query["epoch"]
        if epoch == self.epoch or _term(epoch) > _term(self.epoch):
            if epoch != self.epoch or seq > self.seq:
                raise Refused(503, "not_caught_up", f"seq {seq} is not applied here yet", min_seq=seq)
        elif seq > self.earlier.get(epoch, 0):
            message = f"{epoch}-{seq} is not in this node's history"
            raise Refused(409, "history_lost", message, epoch=epoch, seq=seq)

    def _read(self, key: str) -> web.Response:
        if key not in self.records:
            raise Refused(404, "key_not_found", "no such key", key=key)
        seq, text = self.records[key]
        return web.Response(
            text=f'{{"key":{json.dumps(key)},"value":{text}}}',
            content_type="application/json",
            headers={**self._position(), "ETag": f'"{self.epoch}-{seq}"'},
        )

    async def _read_range(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        query = request.query
        if "start_key" in query and "end_key" in query and query["start_key"] > query["end_key"]:
            raise Refused(400, "invalid_request", "start_key is past end_key", field="start_key")
        other_bound = "start_key" if query.get("reverse") == "true" else "end_key"
        if "prefix" in query and other_bound in query:
            message = f"prefix cannot be combined with {other_bound}"
            raise Refused(400, "invalid_request", message, field=other_bound)
        assert request.headers["Accept"] == "application/x-ndjson"
        keys = sorted(self.records, key=str.encode)
        keys = [key for key in keys if key.startswith(query.get("prefix", ""))]
        keys = [key for key in keys if key.encode() >= query.get("start_key", "").encode()]
        if "end_key" in query:
            keys = [key for key in keys if key.encode() <= query["end_key"].encode()]
        if query.get("reverse") == "true":
            keys.reverse()
        keys = keys[: int(query["limit"])] if "limit" in query else keys
        response = web.StreamResponse(headers={**self._position(), "Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for number, key in enumerate(keys):
            value = self.records[key][1].replace("\n", " ").replace("\r", " ")
            line = f'{{"key":{json.dumps(key)},"value":{value}}}\n'.encode()
            if isinstance(fault, CutStream) and number == fault.after_records:
                await response.write(line[:7])
                if fault.when is not None:
                    await fault.when.wait()
                assert request.transport is not None
                request.transport.close()
                raise asyncio.CancelledError
            await response.write(line)
        if isinstance(fault, CutStream):
            # All records, but not the end of the answer.
            assert request.transport is not None
            request.transport.close()
            raise asyncio.CancelledError
        await response.write_eof()
        return response

    def _write(self, items: list[tuple[str, str]]) -> None:
        for key, text in items:
            if not key:
                raise Refused(400, "invalid_request", "key is empty", field="key")
            for limit, maximum, sent in (
                ("key", MAX_KEY_BYTES, len(key.encode())),
                ("value", MAX_VALUE_BYTES, len(text.encode())),
            ):
                if sent > maximum:
                    message = f"{limit} is limited to {maximum}, got {sent}"
                    raise Refused(413, "too_large", message, limit=limit, max=maximum, sent=sent)
        self.seq += 1
        self.records.update({key: (self.seq, text) for key, text in items})

    def _position(self) -> dict[str, str]:
        return {"Kv-Seq": str(self.seq), "Kv-Epoch": self.epoch}

    def _json(
        self, members: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
    ) -> web.Response:
        return web.json_response(members, status=status, headers={**self._position(), **(headers or {})})


def _term(epoch: str) -> int:
    return int(epoch.partition(".")[0])


def _item(text: str) -> tuple[str, str]:
    item, end = _item_at(text, 0)
    if text[end:].strip():
        raise Refused(400, "invalid_json", "something follows the object")
    return item


def _items(text: str) -> list[tuple[str, str]]:
    items = []
    at = _after_blanks(text, 0) + 1
    while True:
        item, at = _item_at(text, at)
        items.append(item)
        at = _after_blanks(text, at)
        if text[at] == "]":
            return items
        at += 1


def _item_at(text: str, at: int) -> tuple[tuple[str, str], int]:
    """The key and the value's text of the object at `at`, and where the object ends."""
    found: dict[str, str] = {}
    at = _after_blanks(text, at)
    try:
        while text[at] != "}":
            name, at = _decoder.raw_decode(text, _after_blanks(text, at + 1))
            start = _after_blanks(text, _after_blanks(text, at) + 1)
            _, at = _decoder.raw_decode(text, start)
            found[name] = text[start:at]
            at = _after_blanks(text, at)
    except (json.JSONDecodeError, IndexError) as error:
        raise Refused(400, "invalid_json", str(error)) from error
    if found.keys() != {"key", "value"}:
        raise Refused(400, "invalid_request", f"expected key and value, got {sorted(found)}")
    return (json.loads(found["key"]), found["value"]), at + 1


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at
