"""The asynchronous Python client of kvnode: what programs import, and what the commands use.

CLIENT.md beside this file is its guide. `client` is the face; below it, `failover` decides which node is asked and what
may be asked again, `session` makes reads see what was seen before, and `transport` speaks HTTP to one node. `native` is
another, small client: one node, over the peer protocol, on one connection that `pipeline` keeps busy.
"""

from kvnode.cli.client.client import Client
from kvnode.cli.client.jsonvalues import JsonText, JsonValue
from kvnode.cli.client.native import NativeClient
from kvnode.cli.client.results import Deleted, RangeItem, Record, Status, Written
from kvnode.cli.client.session import parse_position
from kvnode.cli.client.targets import Acks
from kvnode.cli.errors import (
    ClientClosed,
    ClientError,
    HistoryLost,
    NoNodeAvailable,
    ServerError,
    Unanswered,
    Unreachable,
)
from kvnode.protocol.types import Position

__all__ = [
    "Acks",
    "Client",
    "ClientClosed",
    "ClientError",
    "Deleted",
    "HistoryLost",
    "JsonText",
    "JsonValue",
    "NativeClient",
    "NoNodeAvailable",
    "Position",
    "RangeItem",
    "Record",
    "ServerError",
    "Status",
    "Unanswered",
    "Unreachable",
    "Written",
    "parse_position",
]
