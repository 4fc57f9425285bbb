#!/opt/kvnode/bin/python -IS
"""Whether the container's node is ready, for Docker's health check: says what it answers, exits with 1 if it is not.

It runs every few seconds, so it imports next to nothing.
"""

import os
import socket
import sys

#: What a node that listens on every address of a family is asked at.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}

address = os.environ["KVNODE_HTTP"]
host, _, port = address.rpartition(":")
host = host.strip("[]")
try:
    with socket.create_connection((LOOPBACK.get(host, host), int(port)), timeout=4) as node:
        node.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = node.makefile("rb").read().decode()
except OSError as error:
    sys.exit(f"{address}: {error}")
head, _, body = answer.partition("\r\n\r\n")
if not head.startswith("HTTP/1.1 200 "):
    sys.exit(body or "no answer")
sys.stdout.write(f"{body}\n")
