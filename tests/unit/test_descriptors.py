"""What the limit of open files leaves for connections."""

import subprocess
import sys

import pytest

from kvnode.node.config import Config
from kvnode.node.descriptors import own_files, share


def test_enough_for_all() -> None:
    config = Config(max_connections=100)
    assert share(own_files(config) + 150, config, 50) == (100, 50)


def test_the_surplus_shrinks_first() -> None:
    config = Config(max_connections=1000)
    assert share(own_files(config) + 1500, config, 4096) == (1000, 500)


def test_a_small_limit_keeps_most_for_the_node() -> None:
    served, surplus = share(1024, Config(), 4096)
    assert served >= 1
    assert surplus >= 1
    assert served + surplus <= 1024 // 4


@pytest.mark.parametrize(("wanted", "found"), [(100, 100), (300, 300), (1000, 400)])
def test_the_limit_is_raised_as_far_as_needed_and_allowed(wanted: int, found: int) -> None:
    """In a process of its own: a hard limit that was lowered cannot be raised again."""
    script = (
        "import resource; from kvnode.node.descriptors import raise_open_files; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400)); "
        f"print(raise_open_files({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(found), str(max(found, 200)), "400"]
