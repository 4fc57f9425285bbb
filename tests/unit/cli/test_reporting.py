"""What is said on stderr: one line each, whatever a node has sent."""

import click
import pytest

from kvnode.cli.reporting import report, want_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u2028 \udcff", "\\u2028 \\udcff"),
        ("ü \U0001f600", "ü \U0001f600"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    report(click.Context(click.Command("x")), "bad", text, hint=text)
    assert capsys.readouterr().err == f"error: {shown} (bad)\nhint: {shown}\n"


def test_in_json_the_text_is_the_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(click.Command("x"))
    want_json(context)
    report(context, "bad", "two\nlines")
    assert capsys.readouterr().err == '{"error": {"code": "bad", "message": "two\\nlines"}}\n'
