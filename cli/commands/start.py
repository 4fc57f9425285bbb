"""`kvnode start`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.cli.settings import SETTINGS_HELP, make_config, setting_options
from kvnode.node.launch import launch

_HELP = """Run a node until it is told to stop.

A new data directory becomes a new cluster's primary. A known one goes on where it was: as the primary that it was, or
as a replica of the primary that it followed last. `kvnode join` makes a replica, or lets one follow another address.
"""


def _run(config_file: Path | None, **flags: str | None) -> None:
    config = make_config(config_file, flags)
    sys.exit(launch(config))


start = click.Command(
    "start",
    callback=_run,
    params=setting_options(),
    help=_HELP + SETTINGS_HELP,
    epilog="""\b
Examples:
  kvnode start                                    data in ./kvnode-data, REST on 127.0.0.1:5001
  kvnode start --data /srv/n1 --http 127.0.0.1:5001 --peer 127.0.0.1:7001 --name n1
  KVNODE_CACHE_BYTES=256MiB kvnode start --config node.toml
""",
)
