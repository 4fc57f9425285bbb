"""LevelDB's files, as far as they may be touched from outside: which logs there are, and whether there is any data.

Only names are looked at. LevelDB ignores names that it does not know, so a renamed log is out of its sight.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOG = ".log"
_TABLES = (".ldb", ".sst")

#: Ends the names of logs that were set aside.
_ASIDE = ".damaged"


def log_names(directory: Path) -> set[str]:
    """The names of LevelDB's own logs, of which each holds one memtable that may not be a table yet.

    Raises:
        OSError: the directory cannot be read.
    """
    return {name for name in os.listdir(directory) if name.endswith(_LOG)}


def lost_its_root(directory: Path) -> bool:
    """Whether logs or tables are there, but not the file from which LevelDB finds them.

    Opened to be made if it is missing, LevelDB would take such a directory for a new one and delete them.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return False
    return "CURRENT" not in names and any(name.endswith((_LOG, *_TABLES)) for name in names)


def has_its_root(directory: Path) -> bool:
    """Whether the file from which LevelDB finds everything is there, and the manifest that it names.

    A database that is open goes on without them, and what it writes then is found by nobody.
    """
    try:
        manifest = os.fsdecode((directory / "CURRENT").read_bytes()).strip()
    except FileNotFoundError:
        return False
    return manifest != "" and (directory / manifest).exists()


def set_logs_aside(directory: Path) -> list[Path]:
    """Hide LevelDB's own logs from it, in place of those that were set aside before.

    Returns:
        Where they are now; `put_logs_back` undoes it.
    """
    for name in os.listdir(directory):
        if name.endswith(_LOG + _ASIDE):
            os.unlink(directory / name)
    aside = []
    for name in sorted(log_names(directory)):
        os.rename(directory / name, directory / (name + _ASIDE))
        aside.append(directory / (name + _ASIDE))
    return aside


def put_logs_back(aside: list[Path]) -> None:
    """Undo `set_logs_aside`."""
    for path in aside:
        os.rename(path, path.with_name(path.name.removesuffix(_ASIDE)))
