"""What a shell is answered while a command line is typed."""

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import SECTIONS, main
from kvnode.cli.completing import COMPLETE_VARIABLE, SHELLS
from kvnode.node.config import SETTINGS, OneOf
from support.stub_server import Answer, Say, StubServer


def complete(line: str, shell: str = "bash") -> Result:
    """The answer to a Tab at the end of a line, as the scripts of bash and fish ask for it."""
    environment = {COMPLETE_VARIABLE: f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": line.rpartition(" ")[2]}
    return CliRunner(env=environment).invoke(main, catch_exceptions=False)


def words(line: str) -> list[str]:
    """What may come next; of files and directories their kind."""
    result = complete(line)
    assert (result.exit_code, result.stderr) == (0, "")
    answers = [line.split(",", 1) for line in result.stdout.splitlines() if line]
    return [value if kind == "plain" else f"<{kind}>" for kind, value in answers]


def test_commands() -> None:
    assert words("kvnode ") == [name for commands in SECTIONS.values() for name in commands]
    assert words("kvnode sta") == ["start", "status"]
    assert words("kvnode wal v") == ["verify"]
    assert words("kvnode frame o") == ["observe"]
    assert words("kvnode --he") == ["--help"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kvnode start --fs", ["--fsync"]),
        ("kvnode start --fsync ", ["always", "never"]),
        ("kvnode start --fsync=n", ["never"]),
        ("kvnode join 127.0.0.1:7001 --log-format ", ["text", "json"]),
        ("kvnode start --data ./d", ["<dir>"]),
        ("kvnode start --config n", ["<file>"]),
        ("kvnode status --url http://127.0.0.1:5001 --w", ["--watch"]),
        ("kvnode nc 127.0.0.1:7001 --purpose o", ["observe"]),
        ("kvnode bench --distribution z", ["zipf"]),
        ("kvnode completion ", list(SHELLS)),
        ("kvnode load ", ["<file>"]),
        ("kvnode dump -o ", ["<file>"]),
        ("kvnode put key --file ", ["<file>"]),
        ("kvnode wal verify ", ["<dir>"]),
    ],
)
def test_options_and_their_values(line: str, expected: list[str]) -> None:
    assert words(line) == expected


def test_members_are_completed_if_the_node_says_who_they_are(stub: StubServer) -> None:
    line = f"kvnode forget --url {stub.url} web"
    stub.status = {"name": "web1", "members": [{"name": f"web{number}"} for number in range(1, 4)] + [{"name": "x"}]}
    assert words(line) == ["web2", "web3"]
    for answer in (Say(b"<html>", "text/html"), Answer(503, "draining"), Say(b'{"name":"web1"}')):
        stub.faults["/status"].append(answer)
        assert words(line) == []


def test_every_setting_is_completed_and_every_choice_is_one() -> None:
    options = words("kvnode start --")
    assert {setting.flag for setting in SETTINGS} <= set(options)
    for setting in SETTINGS:
        if isinstance(setting.parse, OneOf):
            choices = words(f"kvnode start {setting.flag} ")
            assert setting.default in choices
            assert [setting.parse(choice) for choice in choices] == choices


@pytest.mark.parametrize(
    "line", ["kvnode nope ", "kvnode get --nope ", "kvnode get 'a", 'kvnode "', "kvnode wal nope x "]
)
def test_a_line_that_makes_no_sense_is_answered_in_silence(line: str) -> None:
    result = complete(line)
    assert (result.exit_code, result.stderr, result.exception) == (0, "", result.exception)


def test_what_goes_wrong_is_not_written_into_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        print("oh no", file=sys.stderr)
        raise RuntimeError("oh no")

    monkeypatch.setattr("kvnode.cli.__main__._Commands.shell_complete", fail)
    for shell in SHELLS:
        result = complete("kvnode s", shell)
        assert (result.exit_code, result.stdout.strip(), result.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_asks_by_the_variable_and_keeps_stderr_out(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell], catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in result.stdout
    assert "2>/dev/null" in result.stdout
    assert "%" not in result.stdout.replace("'%s\\n'", "")


def test_an_unknown_shell_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["completion", "cmd"])
    assert result.exit_code == 2
    assert "bash" in result.stderr


def test_completing_a_command_imports_none() -> None:
    code = (
        "import sys, os; from kvnode.cli.__main__ import main\n"
        "try: main([], prog_name='kvnode')\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={COMPLETE_VARIABLE: "zsh_complete", "COMP_WORDS": "kvnode\nst", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    *answers, modules = done.stdout.splitlines()
    assert answers[:3] == ["plain", "start", "Run a node until it is told to stop."]
    assert not [name for name in modules.split() if name.startswith("kvnode.cli.commands.")]
    assert {"aiohttp", "asyncio", "rich", "plyvel"}.isdisjoint(modules.split())
