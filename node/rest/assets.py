"""The files that browsers get: the pages of this package, and the bundles of two well-kept libraries that they use.

The bundles are not copied into this project. They come with Python packages, of which nothing but these files is used,
and which are never imported. What a browser may take for them is pinned in the pages, by `integrity`, to the files of
the libraries' own releases: a package that carried anything else would not be run.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

_HTML = "text/html; charset=utf-8"
_CSS = "text/css; charset=utf-8"
_JS = "text/javascript; charset=utf-8"
_SVG = "image/svg+xml"

#: A page is asked for anew each time, which costs a 304; a bundle has its version in its name.
REVALIDATED = "no-cache"
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file in the forms in which it is sent.

    Attributes:
        content_type: of both.
        cache_control: what a browser may do with it.
        body: as it is.
        gzipped: the same, compressed.
        etag: of `body`, with its quotes.
        gzipped_etag: of `gzipped`, likewise.
    """

    content_type: str
    cache_control: str
    body: bytes
    gzipped: bytes
    etag: str
    gzipped_etag: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where an asset comes from.

    Attributes:
        content_type: of the asset, like the next.
        read: gives the body; may block.
    """

    content_type: str
    cache_control: str
    read: Callable[[], bytes]


def _page(name: str, content_type: str) -> Source:
    return Source(content_type, REVALIDATED, (resources.files(__package__) / "static" / name).read_bytes)


def _carried(distribution: str, path: str, content_type: str) -> Source:
    """A file of an installed distribution."""

    def read() -> bytes:
        return Path(str(metadata.distribution(distribution).locate_file(path))).read_bytes()

    return Source(content_type, _FOR_EVER, read)


#: What dashboard.js is made of.
_MODULES = ("charts", "cluster", "format", "jsontext", "keys", "node", "stream", "tail")

#: The pages, by path.
PAGES = {
    "/": _page("dashboard.html", _HTML),
    "/docs": _page("docs.html", _HTML),
}

#: What the pages refer to, by name below /assets/.
FILES = {
    **{name: _page(name, _CSS) for name in ("dashboard.css", "docs.css")},
    # The dashboard's modules find each other by their names.
    **{f"{name}.js": _page(f"{name}.js", _JS) for name in ("dashboard", "docs", *_MODULES)},
    "favicon.svg": _page("favicon.svg", _SVG),
    "uplot-1.6.31.js": _carried("youplot", "youplot/vendor/uplot.iife.min.js", _JS),
    "uplot-1.6.31.css": _carried("youplot", "youplot/vendor/uplot.min.css", _CSS),
    "swagger-ui-5.24.2.js": _carried("swagger-ui-py", "swagger_ui/static/swagger-ui-bundle.js", _JS),
    "swagger-ui-5.24.2.css": _carried("swagger-ui-py", "swagger_ui/static/swagger-ui.css", _CSS),
}


def load(source: Source) -> Asset:
    """Read or make a file, and compress it; slow, and blocks.

    Raises:
        FileNotFoundError: it is not installed.
    """
    try:
        body = source.read()
    except metadata.PackageNotFoundError as error:
        raise FileNotFoundError(f"the package {error.name} is not installed") from error
    # Without a time in it, the same file has the same ETag on every node.
    gzipped = gzip.compress(body, mtime=0)
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Asset(source.content_type, source.cache_control, body, gzipped, f'"{digest}"', f'"{digest}-gzip"')
