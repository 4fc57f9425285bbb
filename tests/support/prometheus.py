"""Prometheus' own programs as judges of what nodes tell it: `promtool`, and a server that scrapes.

Both are in Debian's package prometheus. Where it is missing a test is skipped; where CI=true says that it has to be
there, it fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support.node_process import NodeProcess

_LISTENING = re.compile(r'msg="Listening on" .*?address=(127\.0\.0\.1:\d+)')

_READY = "Server is ready to receive web requests."

#: How long the server may take to listen, or a program to end.
_TIMEOUT_S = 30.0

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

#: Words of PromQL that are no metric, function or label.
_KEYWORDS = frozenset(
    {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
)


def program(name: str) -> str:
    """The path of `promtool` or `prometheus`; skips the test, or in CI fails it, where it is not installed."""
    path = shutil.which(name)
    if path is None:
        reason = f"there is no {name}: apt-get install prometheus"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return path


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run promtool, and return what it says; what it complains of fails the test."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=_TIMEOUT_S, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, f"{' '.join(command)}:\n{said}"
    return said


def scrape(node: NodeProcess, accept: str = "") -> tuple[str, str]:
    """(Content-Type, body) of a node's GET /metrics."""
    request = urllib.request.Request(f"{node.url}/metrics", headers={"Accept": accept} if accept else {})
    with _OPENER.open(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def metrics_of(expression: str) -> set[str]:
    """The names of all metrics that a PromQL expression asks for; Grafana's variables may be in it."""
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", rest)
    # The labels of an aggregation or of a matching.
    rest = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", rest)
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", rest)
    return set(names) - _KEYWORDS


class Server:
    """A Prometheus server that runs."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API; an error fails the test."""
        url = f"{self._url}/{path}?{urlencode(query)}"
        try:
            with _OPENER.open(url, timeout=10) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query finds."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result


@contextmanager
def serving(directory: Path, config: str, rules: Sequence[Path] = ()) -> Iterator[Server]:
    """A server with this configuration, on a port of its own; its files are below `directory`."""
    path = directory / "prometheus.yml"
    path.write_text(config, "utf-8")
    for rule in rules:
        shutil.copy(rule, directory)
    command = [
        *(program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={directory / 'tsdb'}"),
        "--web.listen-address=127.0.0.1:0",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    log: list[str] = []
    address: list[str] = []
    is_settled = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if found := _LISTENING.search(line):
                address.append(found[1])
            if _READY in line:
                is_settled.set()
        is_settled.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        is_settled.wait(_TIMEOUT_S)
        assert address, f"Prometheus does not serve:\n{''.join(log)}"
        yield Server(address[0])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            reader.join(_TIMEOUT_S)
            assert process.stderr is not None
            process.stderr.close()
