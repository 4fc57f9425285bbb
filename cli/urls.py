"""The addresses of nodes as users write them, and in their one form."""

from __future__ import annotations

from collections.abc import Iterable

from yarl import URL

#: Where a node listens unless told otherwise.
DEFAULT_URL = "http://127.0.0.1:5001"

_WITHOUT_USER = "expected http://HOST:PORT, without a user name or password: a node asks for none"


def parse_url(text: str) -> str:
    """A node's address in its one form: with a scheme, without a slash at the end.

    `HOST:PORT` is taken for `http://HOST:PORT`. A user name and a password are refused: addresses are printed, in
    errors and in reports.

    Raises:
        ValueError: it is no such address. The text stands in the message only if it holds no password.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        url = URL(full)
    except ValueError as error:
        if "@" in text:
            raise ValueError(_WITHOUT_USER) from None
        raise ValueError(f"{text!r}: {error}") from error
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError(_WITHOUT_USER)
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.fragment:
        raise ValueError(f"{text!r}: expected http://HOST:PORT")
    return str(url).rstrip("/")


def parse_urls(text: str) -> tuple[str, ...]:
    """The addresses in a list separated by commas, each in its one form and only once.

    Raises:
        ValueError: one of them is none.
    """
    return parse_each(part.strip() for part in text.split(","))


def parse_each(texts: Iterable[str]) -> tuple[str, ...]:
    """These addresses, each in its one form and only once.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(dict.fromkeys(map(parse_url, texts)))
