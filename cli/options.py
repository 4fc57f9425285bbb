"""Options, arguments and values that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

from kvnode.cli.reporting import want_json
from kvnode.cli.urls import DEFAULT_URL, parse_urls

_P = ParamSpec("_P")
_R = TypeVar("_R")


def text_callback(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Refuse text that UTF-8 cannot carry: an argument that is not UTF-8 reaches Python with lone surrogates."""
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError:
        raise click.BadParameter("it is not UTF-8", ctx, param) from None
    return text


class Seconds(click.FloatRange):
    """A time: a number that is finite, within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that a text stands for."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


def _key_callback(ctx: click.Context, param: click.Parameter, key: str) -> str | None:
    if not key:
        raise click.BadParameter("a key has at least one character", ctx, param)
    return text_callback(ctx, param, key)


def _urls_callback(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
    try:
        return parse_urls(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _url_callback(ctx: click.Context, param: click.Parameter, text: str) -> str:
    urls = _urls_callback(ctx, param, text)
    if len(urls) != 1:
        raise click.BadParameter("this command is about one node: name that one", ctx, param)
    return urls[0]


key_argument = click.argument("key", callback=_key_callback)


def node_options(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """`--url` of one node, and `--timeout`; they reach the command as `url` and `timeout_s`."""
    return _url_option("url", _url_callback, "The node to talk to.")(_timeout_option(command))


def nodes_options(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """`--url` of one or several nodes, and `--timeout`; they reach the command as `urls` and `timeout_s`."""
    text = "The node to talk to; of several, URL,URL,..., the next one where one does not answer."
    return _url_option("urls", _urls_callback, text)(_timeout_option(command))


_timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait for an answer.",
)


def _url_option(
    name: str, callback: Callable[[click.Context, click.Parameter, str], object], help_text: str
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    return click.option(
        "--url",
        name,
        callback=callback,
        envvar="KVNODE_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help=help_text,
    )


def json_option(help_text: str, *, writes: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """`--json`, which reaches the command as `as_json` and turns errors into JSON as well.

    Args:
        writes: whether the command makes one write; its errors have `maybe_written` then.
    """

    def note(ctx: click.Context, param: click.Parameter, wanted: bool) -> bool:
        if wanted:
            want_json(ctx, writes=writes)
        return wanted

    return click.option("--json", "as_json", is_flag=True, callback=note, help=help_text)
