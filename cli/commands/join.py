"""`kvnode join`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.cli.peeraddress import address_callback
from kvnode.cli.settings import SETTINGS_HELP, make_config, setting_options
from kvnode.node.config import Address
from kvnode.node.launch import launch

_HELP = """Run a node as a replica of a primary.

PRIMARY:PEERPORT is where the primary speaks the peer protocol, its --peer; not its REST address.

\b
A new data directory   becomes a replica of that primary's cluster.
A replica's directory  goes on where it was, and follows this address from now on. Where the
                       address is still the same, `kvnode start` does as well.
A former primary's     becomes a replica, if it is of the same cluster. Entries that the primary
                       does not have are kept aside, in diverged/ of the directory.

Where the primary does not answer, it is asked again and again. Refused, with exit code 1: a directory of another
cluster, a node that would follow itself, and a name that another member of the cluster has.
"""


def _run(primary: Address, config_file: Path | None, **flags: str | None) -> None:
    config = make_config(config_file, flags)
    sys.exit(launch(config, join=primary))


join = click.Command(
    "join",
    callback=_run,
    params=[
        click.Argument(["primary"], callback=address_callback, metavar="PRIMARY:PEERPORT"),
        *setting_options(),
    ],
    help=_HELP + SETTINGS_HELP,
    epilog="""\b
Examples:
  kvnode join 127.0.0.1:7001 --data /srv/n2 --http 127.0.0.1:5002 --peer 127.0.0.1:7002 --name n2
  kvnode join 127.0.0.1:7002 --data /srv/n1 --http 127.0.0.1:5001 --peer 127.0.0.1:7001
                                                  n1 was the primary, and n2 was promoted in its place
""",
)
