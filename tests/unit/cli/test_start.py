"""`start` and `join`: every setting is an option, and what is given reaches the node as its configuration."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from kvnode.cli.__main__ import main
from kvnode.node.config import SETTINGS, Address, Config
from kvnode.node.errors import DirectoryLocked


class Service(ModuleType):
    """Stands in for `kvnode.node.service`, so that no node is started."""

    def __init__(self) -> None:
        super().__init__("kvnode.node.service")
        self.configs: list[Config] = []
        self.joined: list[Address | None] = []
        self.code = 0
        self.error: Exception | None = None

    def run(self, config: Config, join: Address | None = None) -> int:
        self.configs.append(config)
        self.joined.append(join)
        if self.error:
            raise self.error
        return self.code


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    stand_in = Service()
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    return stand_in


def start(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, ["start", *arguments], catch_exceptions=False)


def join(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, ["join", *arguments], catch_exceptions=False)


def test_without_options_it_is_the_default(service: Service) -> None:
    assert start().exit_code == 0
    assert service.configs == [Config()]
    assert service.joined == [None]


def test_options_variables_and_file_make_the_configuration(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('cache_bytes = "1MiB"\nname = "from-file"\nfsync = "never"\n')
    flags = ["--data", str(tmp_path / "n1"), "--http", "127.0.0.1:0", "--name", "n1", "--config", str(file)]
    result = start(*flags, KVNODE_NAME="n2", KVNODE_CACHE_BYTES="2MiB", KVNODE_URL="http://127.0.0.1:1")
    assert result.exit_code == 0
    assert service.configs == [
        Config(
            data=tmp_path / "n1",
            http=Address("127.0.0.1", 0),
            name="n1",
            cache_bytes=2 * 1024 * 1024,
            fsync="never",
        )
    ]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_the_nodes(service: Service, code: int) -> None:
    service.code = code
    assert start().exit_code == code


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--http", "nowhere"], {}, "--http: expected HOST:PORT, got 'nowhere'"),
        (["--cache-bytes", "lots"], {}, "--cache-bytes: expected a size"),
        (["--engine-open-files", "1"], {}, "--engine-open-files must be at least"),
        (["--max-value-bytes", "1GiB"], {}, "--max-frame-bytes"),
        (["--config", "/nonexistent.toml"], {}, "/nonexistent.toml"),
        ([], {"KVNODE_FSYNC": "sometimes"}, "KVNODE_FSYNC: expected always or never"),
        (["--nope"], {}, "--nope"),
        (["extra"], {}, "extra"),
    ],
)
def test_what_is_no_configuration_is_wrong_usage(
    service: Service, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    result = start(*arguments, **environment)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not service.configs


def test_a_node_that_refuses_to_start_says_why(service: Service) -> None:
    service.error = DirectoryLocked("another process has /srv/n1 open", hint="stop it first")
    result = start()
    assert result.exit_code == 1
    assert result.stderr == ("error: another process has /srv/n1 open (directory_locked)\nhint: stop it first\n")


@pytest.mark.parametrize("command", ["start", "join"])
def test_help_has_every_setting_with_its_variable_and_default(service: Service, command: str) -> None:
    shown = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
    for setting in SETTINGS:
        assert f"{setting.flag} " in shown
        assert f"{setting.help} [{setting.variable}" in shown
    assert "[KVNODE_CACHE_BYTES; default: 64MiB]" in shown
    assert "--http HOST:PORT HOST:PORT for REST. [KVNODE_HTTP; default: 127.0.0.1:5001]" in shown
    assert "default: None" not in shown
    assert "[KVNODE_NAME]" in shown
    assert "--config FILE" in shown


# ---- join ----------------------------------------------------------------------------------------------------------


def test_join_takes_the_same_settings_and_the_primarys_address(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('cache_bytes = "1MiB"\n')
    flags = ["--data", str(tmp_path / "n2"), "--peer", "127.0.0.1:7002", "--config", str(file)]
    assert join("web1:7001", *flags, KVNODE_NAME="n2").exit_code == 0
    assert service.joined == [Address("web1", 7001)]
    assert service.configs == [
        Config(data=tmp_path / "n2", peer=Address("127.0.0.1", 7002), name="n2", cache_bytes=1024 * 1024)
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:1", Address("127.0.0.1", 1)), ("[::1]:7001", Address("::1", 7001)), ("a:65535", Address("a", 65535))],
)
def test_a_primary_may_be_a_name_or_an_address_of_either_family(service: Service, text: str, address: Address) -> None:
    assert join(text).exit_code == 0
    assert service.joined == [address]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["web1"], "expected HOST:PORT, got 'web1'"),
        (["web1:65536"], "expected HOST:PORT, got 'web1:65536'"),
        (["http://web1:7001"], "expected HOST:PORT, got 'http://web1:7001'"),
        (["web1:0"], "nobody listens on port 0, got 'web1:0'"),
        (["web1:7001", "web3:7001"], "unexpected extra argument"),
        (["web1:7001", "--http", "nowhere"], "--http: expected HOST:PORT, got 'nowhere'"),
    ],
)
def test_a_join_that_cannot_be_is_wrong_usage(service: Service, arguments: list[str], message: str) -> None:
    result = join(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not service.configs


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_a_join_is_the_nodes(service: Service, code: int) -> None:
    service.code = code
    assert join("web1:7001").exit_code == code
