"""Reading commands and answers out of a page, and telling a true answer from another."""

import pytest

from support.transcript import Example, examples, matches

PAGE = """# A page

    not a command

    $ first
    one
    two

    $ second 'a
      b' |
        third \\
        --more
    $ fourth

Text
    $ fifth
    five
"""


def test_examples_are_read_in_order() -> None:
    assert list(examples(PAGE)) == [
        Example(5, "first", ("one", "two")),
        Example(9, "second 'a\n  b' |\n    third \\\n    --more", ()),
        Example(13, "fourth", ()),
        Example(16, "fifth", ("five",)),
    ]


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ('{"seq":1}', '{"seq":1}\n'),
        ('{"epoch":"1.d544ef73"}', '{"epoch":"1.00000001"}\n'),
        ("ETag: 1.d544ef73-2", "ETag: 1.abababab-2"),
        ("2026-11-25T16:31:50.211Z", "2027-01-01T00:00:00.000Z"),
        ("a...z", "abcxyz"),
        ("a\n...\nz", "a\nb\nc\nz"),
        ('{"uptime_s":1.5,"bytes":3}', '{"uptime_s":2.0,"bytes":4}'),
    ],
)
def test_what_changes_each_time_may_differ(shown: str, came: str) -> None:
    assert matches(tuple(shown.splitlines()), came)


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ('{"seq":1}', '{"seq":2}'),
        ('{"seq":1}', ""),
        ('{"seq":1}', '{"seq":1}\nmore'),
        ('{"epoch":"1.d544ef73"}', '{"epoch":"2.d544ef73"}'),
        ("a...z", "abcxy"),
        ("a\n...\nz", "az"),
        ("a.c", "abc"),
    ],
)
def test_anything_else_is_a_difference(shown: str, came: str) -> None:
    assert not matches(tuple(shown.splitlines()), came)
