"""What the limit of open files leaves for connections."""

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
