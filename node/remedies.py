"""What to do about an operating system's error at the start of a node, in one sentence each."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from kvnode.node.config import Address

_LAST_PRIVILEGED_PORT = 1023


def listening_remedy(setting: str, address: Address, error: OSError) -> str:
    """What to do where an address cannot be listened on.

    Args:
        setting: the one that names the address, "http" or "peer".
    """
    change = f"--{setting} HOST:PORT or KVNODE_{setting.upper()}"
    if isinstance(error, socket.gaierror):
        return f"the host's name is not known here: use an IP address of this machine, with {change}"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"something listens there already, `ss -ltnp 'sport = :{address.port}'` shows what: stop it, or choose "
                f"another port with {change}"
            )
        case errno.EADDRNOTAVAIL:
            return f"`ip address` lists what this machine has; 0.0.0.0 stands for all of them. Set it with {change}"
        case errno.EACCES if address.port <= _LAST_PRIVILEGED_PORT:
            return f"ports up to {_LAST_PRIVILEGED_PORT} are reserved: choose a higher one with {change}"
        case _:
            return f"choose another address with {change}"


def directory_remedy(data: Path, error: OSError) -> str:
    """What to do where the data directory cannot be used."""
    change = "choose another directory with --data or KVNODE_DATA"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"make the directory, and all in it, this user's: `ls -ld {data}` shows whose it is; or {change}"
        case errno.EROFS:
            return f"the file system is mounted read-only: mount it for writing, or {change}"
        case errno.ENOSPC | errno.EDQUOT:
            return f"make room there, `df -h {data}` shows how much there is; or {change}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"something that is no directory is in its place; {change}"
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit of open files: `ulimit -n` shows it"
        case _:
            return f"look at the disk that {data} is on, or {change}"
