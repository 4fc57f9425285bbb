"""compose/healthcheck.py: where it asks, by KVNODE_HTTP, and what it makes of the answer."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.project import ROOT

HEALTHCHECK = ROOT / "compose" / "healthcheck.py"

READY = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"OK"}'
SYNCING = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":{"code":"syncing"}}'


@contextmanager
def listening(host: str, answer: bytes = b"") -> Iterator[int]:
    """Somebody who gives one connection this answer; yields the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /ready HTTP/1.1\r\n")
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)


def check(http: str) -> tuple[int, str]:
    """(exit code, what it said)."""
    done = subprocess.run(
        [sys.executable, "-IS", HEALTHCHECK],
        env={"PATH": os.defpath, "KVNODE_HTTP": http},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("listens", "setting"),
    [
        # One that asks 127.0.0.1 in any case finds nobody at most of these.
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.8", "127.0.0.8"),
        ("127.0.0.1", "localhost"),
        ("::1", "[::]"),
        ("::1", "[::1]"),
    ],
)
def test_it_asks_where_the_node_listens(listens: str, setting: str) -> None:
    if ":" in listens and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with listening(listens, READY) as port:
        assert check(f"{setting}:{port}") == (0, '{"status":"OK"}\n')


def test_a_node_that_is_not_ready_is_not_healthy() -> None:
    with listening("127.0.0.1", SYNCING) as port:
        assert check(f"127.0.0.1:{port}") == (1, '{"error":{"code":"syncing"}}\n')
    with listening("127.0.0.1") as port:
        assert check(f"127.0.0.1:{port}") == (1, "no answer\n")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code, said = check(f"127.0.0.1:{port}")
    assert (code, said) == (1, f"127.0.0.1:{port}: [Errno 111] Connection refused\n")
