"""Tables and summaries as a pipe gets them: every word of them, and no blanks behind."""

import pytest
from rich.text import Text

from kvnode.cli.tables import make_console, make_summary, make_table, plain


def test_a_pipe_gets_no_blanks_at_the_end_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    console.print(make_summary([("name", "web1"), ("a longer label", "x y")]))
    console.print("")
    rows = [("one", 1, None), ("two", 1000, Text("styled  ", style="red"))]
    console.print(make_table(("word", "count", "last"), rows, title="numbers", numbers=("count",)))
    console.print()
    console.print(plain("alone", "bold"))
    assert capsys.readouterr().out.split("\n") == [
        "name            web1",
        "a longer label  x y",
        "",
        "numbers",
        "word  count  last",
        "one       1  -",
        "two    1000  styled",
        "",
        "alone",
        "",
    ]


def test_long_lines_are_folded_at_the_width_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print(make_summary([("label", "x" * 450)]))
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [200, 200, 71]
