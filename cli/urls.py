"""The addresses of nodes as users write them, and in their one form."""

from __future__ import annotations

from yarl import URL

#: Where a node listens unless told otherwise.
DEFAULT_URL = "http://127.0.0.1:5001"


def parse_url(text: str) -> str:
    """A node's address in its one form: with a scheme, without a slash at the end.

    `HOST:PORT` is taken for `http://HOST:PORT`.

    Raises:
        ValueError: it is no such address.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        url = URL(full)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.fragment:
        raise ValueError(f"{text!r}: expected http://HOST:PORT")
    return str(url).rstrip("/")


def parse_urls(text: str) -> tuple[str, ...]:
    """The addresses in a list separated by commas, each in its one form and only once.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(dict.fromkeys(parse_url(part.strip()) for part in text.split(",")))
