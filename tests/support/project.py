"""Where the project's files are, and which import name each source file has."""

from collections.abc import Iterator
from pathlib import Path

#: The top of the project.
ROOT = Path(__file__).resolve().parents[2]

#: The folders that are packages, by name: `kvnode.<part>` is the folder `<part>`.
PARTS = ("protocol", "node", "cli")


def modules() -> Iterator[tuple[str, Path]]:
    """Yields the import name and the file of every module; a package's name stands for its `__init__`."""
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            names = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(("kvnode", *names)).removesuffix(".__init__"), path
