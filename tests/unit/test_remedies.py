"""What to do about an operating system's error: something for each, that names the setting and the place."""

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from kvnode.node.config import SETTINGS, Address
from kvnode.node.remedies import directory_remedy, listening_remedy

ADDRESS = Address("192.0.2.1", 7001)


@pytest.mark.parametrize("setting", ["http", "peer"])
@pytest.mark.parametrize(
    ("error", "address", "says"),
    [
        (OSError(errno.EADDRINUSE, "in use"), ADDRESS, "`ss -ltnp 'sport = :7001'`"),
        (OSError(errno.EADDRNOTAVAIL, "not there"), ADDRESS, "`ip address`"),
        (PermissionError(errno.EACCES, "denied"), Address("127.0.0.1", 80), "a higher one"),
        (PermissionError(errno.EACCES, "denied"), ADDRESS, "another address"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Address("nowhere", 1), "name is not known"),
        (OSError("something else"), ADDRESS, "another address"),
    ],
)
def test_of_an_address(setting: str, error: OSError, address: Address, says: str) -> None:
    said = listening_remedy(setting, address, error)
    assert says in said
    assert named(said) <= known()
    assert f"--{setting}" in said


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "`ls -ld /srv/n1`"),
        (errno.EROFS, "mounted read-only"),
        (errno.ENOSPC, "`df -h /srv/n1`"),
        (errno.ENOTDIR, "no directory is in its place"),
        (errno.EMFILE, "`ulimit -n`"),
        (errno.EIO, "look at the disk"),
    ],
)
def test_of_the_data_directory(number: int, says: str) -> None:
    said = directory_remedy(Path("/srv/n1"), OSError(number, os.strerror(number)))
    assert says in said
    assert named(said) <= known()


def named(text: str) -> set[str]:
    """The options and variables that a text names."""
    return set(re.findall(r"--[a-z-]+|KVNODE_[A-Z_]+", text))


def known() -> set[str]:
    return {name for setting in SETTINGS for name in (setting.flag, setting.variable)}
