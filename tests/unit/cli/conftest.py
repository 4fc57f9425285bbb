"""A stub node beside each test that asks for one, and the `kvnode` command run in this process against it."""

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from support.stub_server import StubServer


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().in_thread() as server:
        yield server


@pytest.fixture
def kvnode(stub: StubServer) -> Callable[..., Result]:
    """Runs `kvnode ARGS...` against the stub."""

    def run(*arguments: str, input: bytes | None = None) -> Result:  # noqa: A002
        runner = CliRunner(env={"KVNODE_URL": stub.url})
        return runner.invoke(main, list(arguments), input=input, catch_exceptions=False)

    return run
