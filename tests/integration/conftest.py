"""Fixtures that several integration tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.small_disk import mounted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with mounted(tmp_path / "disk") as disk:
        yield disk
