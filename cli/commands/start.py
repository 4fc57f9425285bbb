"""`kvnode start`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvnode.node.config import SETTINGS, Setting, load_config, parse_size
from kvnode.node.errors import ConfigError

_SIZE_UNITS = ("GiB", "MiB", "KiB")


def _run(config_file: Path | None, **flags: str | None) -> None:
    try:
        config = load_config(flags, file=config_file)
    except ConfigError as error:
        raise click.UsageError(error.message) from error
    # The node is a lot to import; only a node that is started needs it.
    from kvnode.node.service import run

    sys.exit(run(config))


def _option(setting: Setting) -> click.Option:
    """A setting's option. Its text goes on to `load_config`, which alone knows the environment and the file."""
    if setting.parse is parse_size:
        metavar, default = "SIZE", _size_text(setting.default)
    else:
        metavar, default = setting.name.rpartition("_")[2].upper(), str(setting.default)
    shown = [setting.variable, *([f"default: {default}"] if default else [])]
    return click.Option(
        [setting.flag, setting.name],
        metavar={"HTTP": "HOST:PORT", "PEER": "HOST:PORT", "DATA": "DIR"}.get(metavar, metavar),
        help=f"{setting.help}  [{'; '.join(shown)}]",
    )


def _size_text(number: int) -> str:
    for power, unit in zip((3, 2, 1), _SIZE_UNITS, strict=True):
        if number and number % 1024**power == 0:
            return f"{number // 1024**power}{unit}"
    return str(number)


start = click.Command(
    "start",
    callback=_run,
    params=[
        *(_option(setting) for setting in SETTINGS),
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file of settings, one `setting_name = value` a line.  [KVNODE_CONFIG]",
        ),
    ],
    help="""Run a node until it is told to stop.

    A new data directory becomes a new cluster's primary; a known one goes on where it was. A setting is taken from its
    option, else from the environment variable in brackets, else from the file, else it has its default. Sizes are
    bytes or have a unit: 67108864, 64MiB.

    SIGTERM or Ctrl-C stops the node within 10 seconds: what was acknowledged is safe, also after a kill -9.
    """,
    epilog="""\b
Examples:
  kvnode start                                    data in ./kvnode-data, REST on 127.0.0.1:5001
  kvnode start --data /srv/n1 --http 127.0.0.1:5001 --peer 127.0.0.1:7001 --name n1
  KVNODE_CACHE_BYTES=256MiB kvnode start --config node.toml
""",
)
