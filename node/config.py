"""The node's settings: frozen, validated once, from flags, environment and file, in that order of precedence.

This is the only module that reads any of the three. `SETTINGS` describes every setting once; the CLI makes its
options from it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kvnode.node.errors import ConfigError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

#: What a queued operation takes in memory besides its key and value, about: without it, a queue of tiny operations
#: would be many times larger than its limit.
OPERATION_BYTES = 200

_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB|K|M|G)?", re.IGNORECASE)
_HOST = re.compile(r"[^\s:\[\]]+|\[[^\s\[\]]+\]")
_UNITS = {"": 1, "b": 1, "k": KiB, "kib": KiB, "m": MiB, "mib": MiB, "g": GiB, "gib": GiB}


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to bind. Port 0 lets the kernel choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, with an IPv6 host in brackets.

        Raises:
            ValueError: it is not of that form.
        """
        host, _, port = text.rpartition(":")
        if not _HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"expected HOST:PORT, got {text!r}")
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_size(text: str) -> int:
    """Read a byte count such as ``67108864``, ``64MiB`` or ``64M`` (powers of 1,024).

    Raises:
        ValueError: it is not of that form.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a size such as 67108864 or 64MiB, got {text!r}")
    return int(match[1]) * _UNITS[(match[2] or "").lower()]


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(text)


def _directory(text: str) -> Path:
    if not text:
        raise ValueError("expected a directory, got an empty text")
    return Path(text)


class OneOf:
    """Reads one of a few words; `choices` has them."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(f"expected {' or '.join(self.choices)}, got {text!r}")
        return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise ValueError(f"expected 1 to 63 letters, digits, '.', '_' or '-', got {text!r}")
    return text


def _setting(help_text: str, parse: Callable[[str], Any], default: Any, minimum: int | None = None) -> Any:
    """A dataclass field that carries its own description."""
    return field(default=default, metadata={"help": help_text, "parse": parse, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. Sizes are bytes. See `SETTINGS` for the texts."""

    data: Path = _setting(
        "Directory that holds the node's data; made if it is missing.", _directory, Path("kvnode-data")
    )
    http: Address = _setting("HOST:PORT for REST.", Address.parse, Address("127.0.0.1", 5001))
    peer: Address = _setting("HOST:PORT for the peer protocol.", Address.parse, Address("127.0.0.1", 7001))
    advertise: Address | None = _setting(
        "HOST:PORT at which other nodes reach the peer port; default: that of --peer.", Address.parse, None
    )
    name: str = _setting("The node's name in the cluster; default: a name made from its id.", _name, "")
    fsync: str = _setting(
        "always: a write is answered after fdatasync. never: the newest writes can be lost in a power failure.",
        OneOf("always", "never"),
        "always",
    )
    log_format: str = _setting("Form of the log lines on stderr: text or json.", OneOf("text", "json"), "text")

    wal_segment_bytes: int = _setting("Size of one log segment.", parse_size, 64 * MiB, 4 * KiB)
    wal_keep_bytes: int = _setting("Closed log segments kept for replicas and for rebuilding.", parse_size, GiB, 0)

    wal_pin_bytes: int = _setting(
        "Log kept for one replica's full sync; past that the sync is begun anew.", parse_size, 8 * GiB, 0
    )

    cache_bytes: int = _setting("Memory of the read cache.", parse_size, 64 * MiB, 0)
    engine_write_buffer_bytes: int = _setting(
        "LevelDB's write buffer (it may hold two).", parse_size, 8 * MiB, 64 * KiB
    )
    engine_block_cache_bytes: int = _setting("LevelDB's block cache.", parse_size, 32 * MiB, 64 * KiB)
    engine_open_files: int = _setting(
        "Files that LevelDB keeps open: ten fewer tables, of about 1 MiB, stay mapped.", _parse_count, 74, 64
    )

    max_key_bytes: int = _setting("Longest key, in UTF-8.", parse_size, 4 * KiB, 1)
    max_value_bytes: int = _setting("Longest value, as JSON text.", parse_size, 4 * MiB, 1)
    max_batch_bytes: int = _setting("Largest batch, keys and values.", parse_size, 16 * MiB, 1)
    max_batch_items: int = _setting("Most items in a batch.", _parse_count, 100_000, 1)
    max_body_bytes: int = _setting("Largest request body.", parse_size, 32 * MiB, 1)
    max_queued_bytes: int = _setting("Memory of queued writes before more are refused.", parse_size, 64 * MiB, 1)
    max_connections: int = _setting(
        "REST connections served at a time; requests on others are refused.", _parse_count, 1024, 1
    )
    max_frame_bytes: int = _setting("Largest frame of the peer protocol.", parse_size, 64 * MiB, 4 * KiB)

    @property
    def _largest_write(self) -> tuple[int, int]:
        """(keys and values of the largest write that is taken, what msgpack adds to them)."""
        # An operation in msgpack: the heads of an array, its kind, the key, an expiry, and the value.
        framing = (1 + 1 + 5 + 9 + 5) * self.max_batch_items + KiB
        return max(self.max_batch_bytes, self.max_key_bytes + self.max_value_bytes), framing

    @property
    def max_write_frame_bytes(self) -> int:
        """The largest frame that a write can make."""
        return sum(self._largest_write)

    def __post_init__(self) -> None:
        for each in fields(self):
            minimum = each.metadata["minimum"]
            value = getattr(self, each.name)
            if minimum is not None and value < minimum:
                raise ConfigError(f"--{_flag(each.name)} must be at least {minimum}, got {value}", setting=each.name)
        for name, address in (("peer", self.peer), ("advertise", self.advertise)):
            if address is not None and not address.host.isascii():
                raise ConfigError(f"--{name}: the host must be ASCII, got {address.host!a}", setting=name)
        if self.advertise is not None and self.advertise.port == 0:
            raise ConfigError("--advertise: others need a port to connect to, not 0", setting="advertise")
        if self.max_key_bytes > 64 * KiB:
            raise ConfigError(
                "--max-key-bytes must be at most 65536: a key has to fit a request line",
                setting="max_key_bytes",
            )
        largest_write, framing = self._largest_write
        if largest_write + framing > self.max_frame_bytes:
            raise ConfigError(
                f"--max-frame-bytes {self.max_frame_bytes} cannot carry the largest allowed write: "
                f"{largest_write} bytes and {framing} for framing",
                hint=f"set --max-frame-bytes to {largest_write + framing} or more, or lower --max-value-bytes and "
                "--max-batch-bytes",
                setting="max_frame_bytes",
            )
        in_memory = largest_write + OPERATION_BYTES * self.max_batch_items
        if in_memory > self.max_queued_bytes:
            raise ConfigError(
                f"--max-queued-bytes {self.max_queued_bytes} cannot hold the largest allowed write: {in_memory}",
                hint=f"set --max-queued-bytes to {in_memory} or more, or lower --max-value-bytes, --max-batch-bytes "
                "and --max-batch-items",
                setting="max_queued_bytes",
            )


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as the CLI and the documentation need to know it.

    Attributes:
        name: the field of `Config`.
        help: one or two sentences.
        parse: text to value; raises ValueError with a message for people.
        default: the value when nothing sets it.
    """

    name: str
    help: str
    parse: Callable[[str], Any]
    default: Any

    @property
    def flag(self) -> str:
        """``--wal-keep-bytes``."""
        return f"--{_flag(self.name)}"

    @property
    def variable(self) -> str:
        """``KVNODE_WAL_KEEP_BYTES``."""
        return f"KVNODE_{self.name.upper()}"


def _flag(name: str) -> str:
    return name.replace("_", "-")


#: Every setting, in the order in which help texts show them.
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(each.name, each.metadata["help"], each.metadata["parse"], each.default) for each in fields(Config)
)


#: What says where TLS finds certificates.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@contextmanager
def import_environment() -> Iterator[None]:
    """The environment in which libraries are imported: with what they take from nowhere else."""
    # uvloop looks up as many names at once as half its threads, and has four. The names of nodes that are gone can take
    # long, which must not keep this one from those that are there.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "16")
    # aiohttp loads the system's certificates twice when it is imported, 40 ms of a start, for clients that a node does
    # not have.
    before = {name: os.environ.get(name) for name in _CERTIFICATES}
    os.environ.update(dict.fromkeys(_CERTIFICATES, os.devnull))
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def load_config(
    flags: Mapping[str, str | None], *, file: Path | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Build the configuration.

    Args:
        flags: text by setting name, as given on the command line; None or absent where it was not.
        file: a TOML file of ``setting_name = value`` (dashes are accepted for underscores); KVNODE_CONFIG when None.
        environ: the environment, `os.environ` when None. Variables that begin with KVNODE_ but are no setting
            belong to other commands and are left alone.

    Raises:
        ConfigError: a value does not parse, is out of range, or the file is unreadable or has an unknown setting.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get("KVNODE_CONFIG"):
        file = Path(environ["KVNODE_CONFIG"])
    from_file = _read_file(file) if file is not None else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if (text := flags.get(setting.name)) is not None:
            source = setting.flag
        elif (text := environ.get(setting.variable)) is not None:
            source = setting.variable
        elif (text := from_file.get(setting.name)) is not None:
            source = f"{setting.name} in {file}"
        else:
            continue
        try:
            values[setting.name] = setting.parse(text)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}", setting=setting.name) from error
    return Config(**values)


def _read_file(path: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        is_text = not isinstance(error, OSError)
        hint = (
            'it is TOML: one `setting_name = "value"` a line'
            if is_text
            else "it is what --config, or else KVNODE_CONFIG, names"
        )
        raise ConfigError(f"configuration file {path}: {error}", hint=hint) from error
    known = {setting.name for setting in SETTINGS}
    texts: dict[str, str] = {}
    for given, value in document.items():
        name = given.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else "`kvnode start --help` lists the settings"
            raise ConfigError(f"configuration file {path}: unknown setting {given!r}", hint=hint, setting=given)
        if name in texts:
            raise ConfigError(f"configuration file {path}: {name!r} is set twice", setting=name)
        if type(value) not in (str, int):
            raise ConfigError(
                f"configuration file {path}: {name!r} must be a string or a whole number",
                hint=f'write {name} = "..."',
                setting=name,
            )
        texts[name] = str(value)
    return texts
