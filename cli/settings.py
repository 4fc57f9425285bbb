"""The options of the commands that run a node, one a setting, and the configuration they make."""

from __future__ import annotations

from pathlib import Path

import click

from kvnode.cli.completing import from_choices, paths
from kvnode.cli.reporting import WrongUsage
from kvnode.node.config import SETTINGS, Address, Config, OneOf, Setting, load_config, parse_size
from kvnode.node.errors import ConfigError

#: What the help texts of these commands end with.
SETTINGS_HELP = """
A setting is taken from its option, else from the environment variable in brackets, else from the file, else it has its
default. Sizes are bytes or have a unit: 67108864, 64MiB.

SIGTERM or Ctrl-C stops the node within 10 seconds: what was acknowledged is safe, also after a kill -9.
"""

_SIZE_UNITS = ("GiB", "MiB", "KiB")


def setting_options() -> list[click.Parameter]:
    """An option for every setting, by its name, and `--config`, which reaches the command as `config_file`."""
    return [
        *(_option(setting) for setting in SETTINGS),
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file of settings, one `setting_name = value` a line.  [KVNODE_CONFIG]",
        ),
    ]


def make_config(config_file: Path | None, flags: dict[str, str | None]) -> Config:
    """The configuration that the options stand for.

    Args:
        flags: the texts of the options by the settings' names, None for those not given.

    Raises:
        click.UsageError: it is none.
    """
    try:
        return load_config(flags, file=config_file)
    except ConfigError as error:
        raise WrongUsage(error.message, hint=error.hint) from error


def _option(setting: Setting) -> click.Option:
    """A setting's option. Its text goes on to `load_config`, which alone knows the environment and the file."""
    default = "" if setting.default is None else str(setting.default)
    complete = None
    if setting.parse is parse_size:
        metavar, default = "SIZE", _size_text(setting.default)
    elif setting.parse == Address.parse:
        metavar = "HOST:PORT"
    elif isinstance(setting.parse, OneOf):
        metavar = setting.name.rpartition("_")[2].upper()
        complete = from_choices(setting.parse.choices)
    elif setting.name == "data":
        metavar, complete = "DIR", paths("dir")
    else:
        metavar = setting.name.rpartition("_")[2].upper()
    shown = [setting.variable, *([f"default: {default}"] if default else [])]
    return click.Option(
        [setting.flag, setting.name],
        metavar=metavar,
        help=f"{setting.help}  [{'; '.join(shown)}]",
        shell_complete=complete,
    )


def _size_text(number: int) -> str:
    for power, unit in zip((3, 2, 1), _SIZE_UNITS, strict=True):
        if number and number % 1024**power == 0:
            return f"{number // 1024**power}{unit}"
    return str(number)
