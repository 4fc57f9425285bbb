"""Facts about the machine and the programs that a run used, for its report."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("aiohttp", "uvloop", "plyvel", "msgspec")


def describe(folder: Path) -> dict[str, str]:
    """The machine, by what is told.

    Args:
        folder: where the servers keep their data.
    """
    return {
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _distribution(),
        "file system of the data": _file_system(folder),
        "Python": f"{platform.python_implementation()} {platform.python_version()}; {_versions()}",
        "wrk": _first_line(["wrk", "-v"]).partition(" Copyright")[0] + ", 1 thread",
        "kvnode": _revision(),
    }


def load_average() -> str:
    """How busy the machine was during the last minute and the last five."""
    one, five, _ = os.getloadavg()
    return f"{one:.1f}, {five:.1f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


def _file_system(folder: Path) -> str:
    # The mount with the longest path that holds the folder.
    path, found = folder.resolve(), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split(" ")[:3]
        if path.is_relative_to(mount) and len(mount) > len(found[0]):
            found = (mount, kind)
    return found[1]


def _versions() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return "unknown"
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _revision() -> str:
    root = str(Path(__file__).parents[2])
    name = _first_line(["git", "-C", root, "rev-parse", "--short", "HEAD"])
    if not name or name.startswith("fatal"):
        return "unknown revision"
    changed = _first_line(["git", "-C", root, "status", "--porcelain", "--", "node", "protocol", "cli"])
    return f"revision {name}{' with changes' if changed else ''}"
