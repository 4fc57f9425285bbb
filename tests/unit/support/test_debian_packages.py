"""The package index as JSON lines."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import debian_packages
from support.debian_packages import records, synthetic, to_line

INDEX = """\
Package: 0ad
Version: 0.0.26-3
Architecture: amd64
Installed-Size: 28591
Depends: 0ad-data (>= 0.0.26), libc6 (>= 2.34)
Tag: game::strategy, interface::graphical,
 uitoolkit::sdl,
 x11::application
Homepage: https://play0ad.com/
Size: 7891488

Package: zlib1g
Version: 1:1.2.13
Architecture: amd64
Maintainer: Jörg "J" <j@example.org>
Size: about 3


Package: 0ad
Version: 0.0.26-3
Architecture: amd64
Description: the same version with other fields

Package: zlib1g
Version: 1:1.2.13
Architecture: amd64
Maintainer: Jörg "J" <j@example.org>
Size: about 3

Origin: a stanza without a package

Package: zlib1g
Version: 1:1.2.13
Architecture: i386
"""


def test_records_of_an_index() -> None:
    assert list(records(io.StringIO(INDEX))) == [
        {
            "key": "0ad/0.0.26-3/amd64",
            "value": {
                "Package": "0ad",
                "Version": "0.0.26-3",
                "Architecture": "amd64",
                "Installed-Size": 28591,
                "Depends": "0ad-data (>= 0.0.26), libc6 (>= 2.34)",
                "Tag": "game::strategy, interface::graphical,\nuitoolkit::sdl,\nx11::application",
                "Homepage": "https://play0ad.com/",
                "Size": 7891488,
            },
        },
        {
            "key": "zlib1g/1:1.2.13/amd64",
            "value": {
                "Package": "zlib1g",
                "Version": "1:1.2.13",
                "Architecture": "amd64",
                "Maintainer": 'Jörg "J" <j@example.org>',
                "Size": "about 3",
            },
        },
        {
            "key": "0ad/0.0.26-3/amd64#2",
            "value": {
                "Package": "0ad",
                "Version": "0.0.26-3",
                "Architecture": "amd64",
                "Description": "the same version with other fields",
            },
        },
        {
            "key": "zlib1g/1:1.2.13/i386",
            "value": {"Package": "zlib1g", "Version": "1:1.2.13", "Architecture": "i386"},
        },
    ]


@pytest.mark.parametrize("index", ["", "\n\n", "Origin: x\n", " a continuation of nothing\n"])
def test_an_index_without_packages_has_no_records(index: str) -> None:
    assert list(records(io.StringIO(index))) == []


def test_a_record_is_one_line_of_json() -> None:
    for record in [*records(io.StringIO(INDEX)), *synthetic(200, 1)]:
        assert "\n" not in to_line(record)
        assert json.loads(to_line(record)) == record


def test_synthetic_records_are_as_many_as_asked_unique_and_repeatable() -> None:
    made = list(synthetic(2000, 1))
    assert len({record["key"] for record in made}) == len(made) == 2000
    assert made == list(synthetic(2000, 1))
    assert made != list(synthetic(2000, 2))
    assert {type(record["value"]) for record in made} == {dict, list, str, int, float, type(None)}


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    script = Path(debian_packages.__file__)
    return subprocess.run(
        [sys.executable, script, *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )


def test_as_a_script() -> None:
    done = run("-", stdin=INDEX.encode() + b"Description: \xff\n")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[-1])["value"]["Description"] == "\ufffd"

    done = run("--synthetic", "3", "--seed", "5")
    assert [json.loads(line) for line in done.stdout.splitlines()] == list(synthetic(3, 5))


def test_an_empty_index_is_said() -> None:
    done = run("-")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"--synthetic" in done.stderr
