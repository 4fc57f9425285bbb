"""The plainest key-value service that FastAPI, uvicorn and plyvel make: what people write when they start.

A put runs in FastAPI's thread pool, as every `def` handler does: a line in a log file, which is not synced, then
LevelDB, then the cache. Run it as ``python fastapi_app.py DIRECTORY``; it prints its port, then serves.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import plyvel
import uvicorn
from cachetools import LRUCache
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Item(BaseModel):
    """The body of a put."""

    key: str
    value: str


def make_app(directory: Path) -> FastAPI:
    """The application, with its data in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    database = plyvel.DB(str(directory / "db"), create_if_missing=True)
    log = (directory / "log.jsonl").open("a")
    cache: LRUCache[str, str] = LRUCache(maxsize=100_000)
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/put")
    def put(item: Item) -> dict[str, str]:
        with lock:
            log.write(json.dumps({"key": item.key, "value": item.value}) + "\n")
            log.flush()
            database.put(item.key.encode(), item.value.encode())
            cache[item.key] = item.value
        return {"status": "OK", "key": item.key}

    @app.get("/read/{key}")
    def read(key: str) -> dict[str, str]:
        with lock:
            value = cache.get(key)
            if value is None:
                stored = database.get(key.encode())
                if stored is None:
                    raise HTTPException(status_code=404, detail="key not found")
                value = cache[key] = stored.decode()
        return {"key": key, "value": value}

    return app


def main() -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(make_app(Path(sys.argv[1])), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
