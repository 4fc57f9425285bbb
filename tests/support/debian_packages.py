"""Debian's package index as JSON lines, one record a package: real input for `kvnode load`.

    python tests/support/debian_packages.py > packages.jsonl
    apt-cache dumpavail | python tests/support/debian_packages.py - > packages.jsonl
    python tests/support/debian_packages.py --synthetic 60000 > packages.jsonl

A record's key is `<package>/<version>/<architecture>`, its value an object of the index's fields: text, and whole
numbers for sizes. Keys are unique: a stanza that is in the index twice is written once, one that differs from an
earlier one of the same key gets `#2`, `#3` at the end of its key. The same input gives the same output, byte for byte.
Where the index cannot be had, --synthetic makes records of the same shape, and some of other shapes, from a seed.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]

#: Fields that hold a whole number.
_NUMBERS = frozenset({"Size", "Installed-Size"})

_WORDS = (
    *("lib", "python3", "dev", "doc", "data", "perl", "common", "tools", "server", "client", "utils", "core"),
    *("größe", "日本語", "Ω", "emoji-\U0001f600", "naïve", 'quote"d', "back\\slash", "tab\there", "line\nend"),
)


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the fields of each stanza. Continuation lines belong to their field's text, each after a line end."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.rstrip("\n")
        if not text.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif text[0] in " \t" and name:
            fields[name] += "\n" + text[1:]
        else:
            name, _, value = text.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def records(lines: Iterable[str]) -> Iterator[Record]:
    """Yield a record for each stanza that names a package, with unique keys."""
    #: key -> digests of the stanzas that were written under it, with or without a number
    written: dict[str, list[bytes]] = {}
    for fields in stanzas(lines):
        if "Package" not in fields:
            continue
        key = "/".join(fields.get(name, "") for name in ("Package", "Version", "Architecture"))
        value = {
            name: int(text) if name in _NUMBERS and text.isascii() and text.isdigit() else text
            for name, text in fields.items()
        }
        digest = blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
        digests = written.setdefault(key, [])
        if digest in digests:
            continue
        digests.append(digest)
        yield {"key": key if len(digests) == 1 else f"{key}#{len(digests)}", "value": value}


def synthetic(count: int, seed: int) -> Iterator[Record]:
    """Yield made-up records: mostly like the index's, a tenth of them other kinds of JSON values."""
    chance = random.Random(seed)
    for number in range(count):
        name = "-".join(chance.choices(_WORDS, k=chance.randint(1, 3)))
        key = f"{name}/{chance.randint(0, 9)}.{number}-{chance.randint(1, 4)}/{chance.choice(('amd64', 'all'))}"
        yield {"key": key, "value": _value(chance, name)}


def _value(chance: random.Random, name: str) -> Any:
    kind = chance.randrange(50)
    if kind < 5:
        return (None, 10**19 + chance.randrange(10**18), float(chance.randrange(100)), name, [name, {"": True}])[kind]
    return {
        "Package": name,
        "Installed-Size": chance.randrange(10**7),
        "Depends": ", ".join(chance.choices(_WORDS, k=chance.randint(0, 30))),
        "Description": "\n".join(" ".join(chance.choices(_WORDS, k=8)) for _ in range(chance.randint(1, 12))),
        "SHA256": f"{chance.getrandbits(256):064x}",
    }


def to_line(record: Record) -> str:
    """A record as one JSON line, without its end."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def index_lines() -> Iterator[str]:
    """Yield the lines of this machine's package index.

    Raises:
        OSError: there is no `apt-cache`.
        subprocess.CalledProcessError: it failed.
    """
    command = ["apt-cache", "dumpavail"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def main(arguments: list[str]) -> int:
    """Print the records that the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input", nargs="?", choices=["-"], help="read an index from the standard input")
    parser.add_argument("--synthetic", type=int, metavar="N", help="make N records instead")
    parser.add_argument("--seed", type=int, default=1, help="of --synthetic (default: 1)")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if options.synthetic is not None:
        found = synthetic(options.synthetic, options.seed)
    elif options.input == "-":
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        found = records(sys.stdin)
    else:
        found = records(index_lines())
    count = 0
    try:
        for record in found:
            sys.stdout.write(to_line(record) + "\n")
            count += 1
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no package index: {error}", file=sys.stderr)
        return 1
    if not count and options.synthetic is None:
        print("the package index is empty: run `apt-get update`, or use --synthetic", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
