"""The dependency rule, read from the imports: `cli -> node -> protocol`, and what each part must not know.

Each rule is also fed sources that break it and some that do not, so that one that no longer bites is noticed.
"""

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from support.project import PARTS, modules

# What reaches the network, the disk, the clock, chance, or another thread.
IMPURE = (
    *("asyncio", "uvloop", "aiohttp", "socket", "selectors", "select", "ssl", "http", "urllib"),
    *("os", "io", "pathlib", "shutil", "tempfile", "fcntl", "mmap", "plyvel", "subprocess"),
    *("time", "random", "secrets", "uuid", "logging", "threading", "concurrent", "multiprocessing"),
)
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb")


class Module(NamedTuple):
    """A source file as the rules see it."""

    #: Import name, such as kvnode.node.storage.wal.
    name: str
    #: Dotted names of all that it imports, and of the attributes of modules that it touches.
    uses: frozenset[str]


class Rule(NamedTuple):
    """Modules that the rule is for must use nothing that is inside one of the forbidden names."""

    name: str
    is_for: Callable[[str], bool]
    forbidden: tuple[str, ...]

    def broken_by(self, module: Module) -> list[str]:
        """Returns what the module uses and must not, sorted."""
        if not self.is_for(module.name):
            return []
        return sorted(use for use in module.uses if any(is_inside(use, name) for name in self.forbidden))


def is_inside(name: str, outer: str) -> bool:
    """Whether a dotted name is another or something inside it: a.b.c is inside a.b, a.bc is not."""
    return name == outer or name.startswith(outer + ".")


def anywhere_but(*exempt: str) -> Callable[[str], bool]:
    return lambda name: name not in exempt


def inside(outer: str) -> Callable[[str], bool]:
    return lambda name: is_inside(name, outer)


RULES = {
    rule.name: rule
    for rule in (
        Rule("protocol is below all", inside("kvnode.protocol"), ("kvnode.node", "kvnode.cli")),
        Rule("node is below cli", inside("kvnode.node"), ("kvnode.cli",)),
        Rule(
            "protocol is pure",
            inside("kvnode.protocol"),
            IMPURE,
        ),
        Rule("one knows plyvel", anywhere_but("kvnode.node.storage.leveldb"), ("plyvel",)),
        Rule("one reads the environment", anywhere_but("kvnode.node.config"), ENVIRONMENT),
        Rule(
            "storage knows no network",
            inside("kvnode.node.storage"),
            ("kvnode.node.rest", "kvnode.node.replication", "aiohttp", "socket", "ssl", "uvloop"),
        ),
        Rule("rest knows no log file", inside("kvnode.node.rest"), ("kvnode.node.storage", "plyvel")),
        # It would make a second copy of every class.
        Rule("nothing has a bare name", anywhere_but(), PARTS),
    )
}


def read(name: str, source: str, *, is_package: bool = False) -> Module:
    """Returns a module's name and uses. `is_package` matters for what its relative imports start from."""
    tree = ast.parse(source)
    return Module(name, frozenset(uses(tree, name if is_package else name.rpartition(".")[0])))


def uses(tree: ast.Module, package: str) -> Iterator[str]:
    """Yields the dotted names that a module imports, and the attributes it touches of modules it imports.

    `from a import b` yields both a and a.b, as b may be a module. Imports in functions and below
    `if TYPE_CHECKING` count.
    """
    #: What a local name stands for: its dotted name.
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{start}.{base}".rstrip(".")
            yield base
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{base}.{alias.name}"
                yield f"{base}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node).split(".")
            if dotted[0] in bound:
                yield ".".join([bound[dotted[0]], *dotted[1:]])


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_project_keeps_the_rule(rule: Rule) -> None:
    broken = {}
    for name, path in modules():
        module = read(name, path.read_text("utf-8"), is_package=path.name == "__init__.py")
        if offences := rule.broken_by(module):
            broken[name] = offences
    assert not broken


def test_project_has_the_modules_that_the_rules_name() -> None:
    """A module that was renamed would otherwise be exempt or checked under a name that is gone."""
    assert {"kvnode.node.storage.leveldb", "kvnode.node.config"} <= {name for name, _ in modules()}


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        ("protocol is below all", "kvnode.protocol.entry", "from kvnode.node.store import Store"),
        ("protocol is below all", "kvnode.protocol.entry", "from kvnode import cli"),
        ("protocol is below all", "kvnode.protocol.entry", "from ..node import store"),
        ("protocol is below all", "kvnode.protocol", "from .. import node"),
        ("node is below cli", "kvnode.node.store", "from kvnode.cli.client import Client"),
        ("node is below cli", "kvnode.node.storage.wal", "def f():\n    from ...cli import client"),
        ("protocol is pure", "kvnode.protocol.codec", "import asyncio"),
        ("protocol is pure", "kvnode.protocol.codec", "import os.path as p"),
        ("protocol is pure", "kvnode.protocol.codec", "if TYPE_CHECKING:\n    from socket import socket"),
        ("protocol is pure", "kvnode.protocol", "from time import monotonic"),
        ("one knows plyvel", "kvnode.node.storage.engine", "import plyvel"),
        ("one knows plyvel", "kvnode.cli.commands.wal", "from plyvel import DB"),
        ("one reads the environment", "kvnode.cli.client", "import os\nurl = os.environ['X']"),
        ("one reads the environment", "kvnode.node.service", "import os as system\nurl = system.getenv('X')"),
        ("one reads the environment", "kvnode.node.service", "from os import environ as e"),
        ("storage knows no network", "kvnode.node.storage.wal", "from kvnode.node.rest import server"),
        ("storage knows no network", "kvnode.node.storage.wal", "from .. import rest"),
        ("storage knows no network", "kvnode.node.storage", "import aiohttp.web"),
        ("rest knows no log file", "kvnode.node.rest.handlers", "from kvnode.node.storage.wal import Wal"),
        ("rest knows no log file", "kvnode.node.rest", "from ..storage import wal"),
        ("nothing has a bare name", "kvnode.node.store", "from protocol.types import Seq"),
        ("nothing has a bare name", "kvnode.cli.client", "import node"),
        ("nothing has a bare name", "kvnode.cli.client", "import cli.commands"),
    ],
)
def test_rule_bites(rule: str, module: str, source: str) -> None:
    is_package = module in {"kvnode.protocol", "kvnode.node.storage", "kvnode.node.rest"}
    assert RULES[rule].broken_by(read(module, source, is_package=is_package))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "kvnode.protocol.entry",
            "from kvnode.protocol.types import Seq\nfrom . import errors\nimport zlib, msgpack",
        ),
        ("kvnode.protocol.types", "from dataclasses import dataclass\nimport timeit_, operator"),
        (
            "kvnode.node.store",
            "from kvnode.protocol import types\nfrom .storage import wal\nimport os, time, asyncio",
        ),
        ("kvnode.node.storage.leveldb", "import plyvel\nimport os\nos.fsync(3)"),
        ("kvnode.node.config", "import os\nos.environ.get('X')"),
        ("kvnode.node.rest.handlers", "import aiohttp\nfrom kvnode.node import api\nfrom .. import errors"),
        ("kvnode.cli.client", "import aiohttp\nfrom kvnode.node import config\nfrom .commands import put"),
        ("kvnode.cli.client", "environ = {}\nenviron.get('X')\nos = 1"),
    ],
)
def test_rules_leave_good_code_alone(module: str, source: str) -> None:
    assert [name for name, rule in RULES.items() if rule.broken_by(read(module, source))] == []
