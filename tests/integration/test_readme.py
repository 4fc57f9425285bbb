"""README.md is taken at its word: its commands, in its order, give the answers that it shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.node.config import Config
from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.node.rest.openapi.document import build_document
from support.netns import NetworkNamespace
from support.project import ROOT
from support.transcript import examples, matches

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = tuple(examples(README))


class Reader:
    """Somebody who has the project's folder and types what README says."""

    def __init__(self, network: NetworkNamespace, data: Path) -> None:
        self.network = network
        self.data = data

    def run(self, command: str) -> str:
        """What a command prints."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
        environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
        # The one thing that is not as README has it: the nodes' data are not put into the project.
        told = re.sub(r"compose/(up|down)", rf"compose/\1 --data {self.data}", command)
        told = told.replace("compose/data/", f"{self.data}/")
        done = subprocess.run(
            self.network.inside("bash", "-c", told),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        # Of curl only the answer; of a command that fails, what it says.
        return done.stdout if "curl" in command else done.stdout + done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    if objection := NetworkNamespace.objection():
        pytest.skip(f"README's ports cannot be had: {objection}")
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("README's commands use the project's own .venv, which tests/run runs the tests in")
    with NetworkNamespace() as network:
        reader = Reader(network, tmp_path_factory.mktemp("readme") / "data")
        yield reader
        print(reader.run("compose/down --purge"))


@pytest.mark.timeout(200)
def test_its_commands_give_the_answers_that_it_shows(reader: Reader) -> None:
    differences = []
    for example in EXAMPLES:
        came = reader.run(example.command)
        if example.output and not matches(example.output, came):
            shown = "\n".join(example.output)
            differences.append(f"README.md:{example.line}\n$ {example.command}\nshown: {shown}\n came: {came}")
    assert not differences, "\n\n".join(differences)


def test_every_error_code_is_told() -> None:
    told = dict.fromkeys(re.findall(r"`([a-z_]+)`", README))
    assert [code for code in STATUS_OF_CODE if code not in told] == []


def test_every_route_has_a_command() -> None:
    commands = "\n".join(example.command for example in EXAMPLES if "curl" in example.command)
    paths = {path.partition("{")[0] for path in build_document(Config())["paths"]}
    # Pages are for browsers.
    wanted = paths - {"/", "/docs", "/assets/"}
    assert wanted
    assert [path for path in wanted if not re.search(rf"localhost:\d+{path}", commands)] == []
