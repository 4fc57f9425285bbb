"""The settings: where each comes from, what is refused, and that every refusal names its source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnode.node.config import OPERATION_BYTES, SETTINGS, Address, Config, GiB, KiB, MiB, load_config, parse_size
from kvnode.node.errors import ConfigError
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.types import Entry, Epoch, put

U64_MAX = 2**64 - 1

#: For each setting, a text that is not its default, and the value that it means.
SAMPLES: dict[str, tuple[str, Any]] = {
    "data": ("/srv/n1", Path("/srv/n1")),
    "http": ("0.0.0.0:80", Address("0.0.0.0", 80)),
    "peer": ("[::1]:0", Address("::1", 0)),
    "advertise": ("web1:7001", Address("web1", 7001)),
    "name": ("n-1.eu_2", "n-1.eu_2"),
    "fsync": ("never", "never"),
    "log_format": ("json", "json"),
    "wal_segment_bytes": ("8MiB", 8 * MiB),
    "wal_keep_bytes": ("0", 0),
    "wal_pin_bytes": ("3GiB", 3 * GiB),
    "cache_bytes": ("0", 0),
    "engine_write_buffer_bytes": ("64K", 64 * KiB),
    "engine_block_cache_bytes": ("1g", GiB),
    "engine_open_files": ("64", 64),
    "max_key_bytes": ("65536", 65536),
    "max_value_bytes": ("5 MiB", 5 * MiB),
    "max_batch_bytes": ("2m", 2 * MiB),
    "max_batch_items": ("7", 7),
    "max_body_bytes": ("1B", 1),
    "max_queued_bytes": ("48mib", 48 * MiB),
    "max_connections": ("17", 17),
    "max_frame_bytes": ("128MiB", 128 * MiB),
}

WRONG: dict[str, tuple[str, ...]] = {
    "data": ("",),
    "http": ("", "5001", ":5001", "host:", "host:x", "host:65536", "host:-1", "::1:5001", "[::1]", "a b:1", "h\n:1"),
    "peer": ("[::1:1", "::1]:1", "[]:1", "host:٣", "h:1\n"),
    "advertise": ("", "7001", "web1:", ":7001"),
    "name": ("", ".n", "-n", "a b", "ä", "n/1", "n" * 64, "n\n"),
    "fsync": ("", "Always", "true"),
    "log_format": ("", "xml"),
    "wal_segment_bytes": ("", "-1", "1.5M", "64Mi", "1KB", "1e3", "٣", "9" * 5000),
    "engine_open_files": ("", "64K", "-1", "٣", "1.0"),
}


def as_flags(name: str, text: str) -> Callable[[Path], Config]:
    return lambda _: load_config({name: text}, environ={})


def as_variable(name: str, text: str) -> Callable[[Path], Config]:
    return lambda _: load_config({}, environ={f"KVNODE_{name.upper()}": text})


def in_file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(content, "utf-8")
    return path


# ---- where a value comes from ----------------------------------------------------------------------------------


def test_without_any_source_everything_has_its_default() -> None:
    config = load_config({}, environ={"PATH": "/bin"})
    assert config == Config()
    assert (config.fsync, config.cache_bytes, config.max_batch_items) == ("always", 64 * MiB, 100_000)
    assert str(config.http) == "127.0.0.1:5001"


def test_samples_cover_every_setting() -> None:
    assert SAMPLES.keys() == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_setting_is_taken_from_each_source(name: str, tmp_path: Path) -> None:
    text, value = SAMPLES[name]
    setting = next(setting for setting in SETTINGS if setting.name == name)
    assert value != setting.default
    assert setting.flag == "--" + name.replace("_", "-")
    file = in_file(tmp_path, f'{name} = "{text}"')
    for config in (
        load_config({name: text}, environ={}),
        load_config({name: None}, environ={setting.variable: text}),
        load_config({}, environ={}, file=file),
        load_config({}, environ={"KVNODE_CONFIG": str(file)}),
    ):
        assert getattr(config, name) == value
        # And nothing else moved.
        assert {each.name for each in SETTINGS if getattr(config, each.name) != each.default} == {name}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = in_file(tmp_path, 'name = "file"\ncache_bytes = "1K"\nfsync = "never"')
    environ = {"KVNODE_NAME": "env", "KVNODE_CACHE_BYTES": "2K", "KVNODE_UNRELATED": "x", "KVNODE_URL": "http://h"}
    config = load_config({"name": "flag", "cache_bytes": None}, environ=environ, file=file)
    assert (config.name, config.cache_bytes, config.fsync) == ("flag", 2 * KiB, "never")


def test_a_file_given_on_the_command_line_wins_over_the_one_of_the_environment(tmp_path: Path) -> None:
    file = in_file(tmp_path, 'name = "given"')
    config = load_config({}, environ={"KVNODE_CONFIG": str(tmp_path / "missing.toml")}, file=file)
    assert config.name == "given"


def test_an_empty_variable_for_the_file_means_none() -> None:
    assert load_config({}, environ={"KVNODE_CONFIG": ""}) == Config()


def test_the_file_takes_dashes_and_whole_numbers(tmp_path: Path) -> None:
    file = in_file(tmp_path, "cache-bytes = 4096\nengine_open_files = 100")
    config = load_config({}, environ={}, file=file)
    assert (config.cache_bytes, config.engine_open_files) == (4096, 100)


# ---- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_an_error_names_the_source_and_the_setting(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^--{name.replace('_', '-')}: ") as caught:
        load_config({name: text}, environ={})
    assert caught.value.fields == {"setting": name}
    assert caught.value.code == "invalid_config"
    with pytest.raises(ConfigError, match=f"^KVNODE_{name.upper()}: "):
        load_config({}, environ={f"KVNODE_{name.upper()}": text})


def test_an_error_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = in_file(tmp_path, 'http = "nowhere"')
    with pytest.raises(ConfigError, match=r"http in .*node\.toml: expected HOST:PORT, got 'nowhere'"):
        load_config({}, environ={}, file=file)


def test_a_source_that_loses_is_not_looked_at() -> None:
    assert load_config({"name": "n1"}, environ={"KVNODE_NAME": "not a name"}).name == "n1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cache_byte = 1", "unknown setting 'cache_byte'"),
        ("[wal]\nkeep_bytes = 1", "unknown setting 'wal'"),
        ("cache-bytes = 1\ncache_bytes = 2", "'cache_bytes' is set twice"),
        ("name = true", "'name' must be a string or a whole number"),
        ('data = ["a"]', "'data' must be a string or a whole number"),
        ("data = {a = 1}", "'data' must be a string or a whole number"),
        ("cache_bytes = 1.5", "'cache_bytes' must be a string or a whole number"),
        ("name = 2001-01-01", "'name' must be a string or a whole number"),
        ("name = ", "Invalid value"),
        ('name = "a"\nname = "b"', "Cannot overwrite a value"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    file = in_file(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config({}, environ={}, file=file)
    assert str(file) in caught.value.message
    assert message in caught.value.message


def test_a_file_that_is_missing_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: .*No such file"):
        load_config({}, environ={"KVNODE_CONFIG": str(tmp_path / "missing.toml")})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"binary\.toml: .*utf-8"):
        load_config({}, environ={}, file=binary)


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("wal_segment_bytes", 4 * KiB),
        ("engine_write_buffer_bytes", 64 * KiB),
        ("engine_block_cache_bytes", 64 * KiB),
        ("engine_open_files", 64),
        ("max_key_bytes", 1),
        ("max_value_bytes", 1),
        ("max_batch_bytes", 1),
        ("max_batch_items", 1),
        ("max_body_bytes", 1),
    ],
)
def test_minimum_is_taken_and_one_below_refused(name: str, minimum: int) -> None:
    assert getattr(load_config({name: str(minimum)}, environ={}), name) == minimum
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} must be at least {minimum}, got {minimum - 1}") as caught:
        load_config({name: str(minimum - 1)}, environ={})
    assert caught.value.fields == {"setting": name}


def test_a_key_must_fit_a_request_line() -> None:
    assert Config(max_key_bytes=64 * KiB).max_key_bytes == 64 * KiB
    with pytest.raises(ConfigError, match="--max-key-bytes must be at most 65536") as caught:
        Config(max_key_bytes=64 * KiB + 1)
    assert caught.value.fields == {"setting": "max_key_bytes"}


@pytest.mark.parametrize(
    "limits",
    [
        {"max_batch_bytes": 1000, "max_key_bytes": 100, "max_value_bytes": 200},
        {"max_batch_bytes": 1, "max_key_bytes": 100, "max_value_bytes": 900},
    ],
)
def test_the_queue_must_hold_the_largest_write(limits: dict[str, int]) -> None:
    largest = max(limits["max_batch_bytes"], limits["max_key_bytes"] + limits["max_value_bytes"])
    largest += OPERATION_BYTES * Config().max_batch_items
    assert Config(max_queued_bytes=largest, **limits).max_queued_bytes == largest
    with pytest.raises(ConfigError, match=f"--max-queued-bytes {largest - 1} cannot hold .*: {largest}") as caught:
        Config(max_queued_bytes=largest - 1, **limits)
    assert caught.value.fields == {"setting": "max_queued_bytes"}


@pytest.mark.parametrize(
    ("items", "key_bytes", "value_bytes"), [(1, 65536, 1), (1, 1, 65536), (400, 256, 65536), (3000, 300, 1)]
)
def test_a_frame_carries_the_largest_write_whatever_its_operations_look_like(
    items: int, key_bytes: int, value_bytes: int
) -> None:
    """An expiry time is stored as 0 today; frames must not have to grow when it is used."""
    value = b"9" * value_bytes
    ops = tuple(put(b"k" * key_bytes, value, U64_MAX) for _ in range(items))
    size = items * (key_bytes + len(value))
    limits: dict[str, int] = {
        "max_key_bytes": key_bytes,
        "max_value_bytes": len(value),
        "max_batch_bytes": size,
        "max_batch_items": items,
    }
    smallest = max(4 * KiB, _smallest_frame(limits))
    with pytest.raises(ConfigError, match=r"--max-frame-bytes \d+ cannot carry the largest allowed write"):
        Config(max_frame_bytes=_smallest_frame(limits) - 1, **limits)
    entry = EntryEncoder().encode(Entry(U64_MAX, Epoch(U64_MAX), U64_MAX, ops))
    assert len(entry) <= smallest
    # What a frame wraps around entries: its type and fields, the entries' CRC.
    assert len(entry) + 64 <= smallest


def _smallest_frame(limits: dict[str, int]) -> int:
    """The smallest max_frame_bytes that is taken with these limits."""
    refused, taken = 4 * KiB - 1, 1 << 40
    while taken - refused > 1:
        middle = (refused + taken) // 2
        try:
            Config(max_frame_bytes=middle, **limits)
            taken = middle
        except ConfigError:
            refused = middle
    return taken


# ---- the texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:5001", Address("127.0.0.1", 5001), "127.0.0.1:5001"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
        ("[::1]:65535", Address("::1", 65535), "[::1]:65535"),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        ("[10.0.0.1]:080", Address("10.0.0.1", 80), "10.0.0.1:80"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown
    assert Address.parse(shown) == address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("127.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_only_addresses_of_this_machine_count_as_loopback(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback is is_loopback


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1024", 1024), (" 1 KiB ", 1024), ("3k", 3072), ("2M", 2 * MiB), ("1GiB", GiB)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
