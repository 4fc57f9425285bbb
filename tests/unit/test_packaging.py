"""What is installed is what is in the folders.

An editable install forgives a package that setup.cfg does not list; the wheel lacks it. So the list is
compared with the folders, and a wheel is built and looked into.
"""

import configparser
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.project import PARTS, ROOT, modules

PACKAGES = sorted(name for name, path in modules() if path.name == "__init__.py")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing an earlier build left behind gets into the wheel."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Iterator[zipfile.ZipFile]:
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, "out"], cwd=tree, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tree / "out" / done.stdout.splitlines()[-1]) as opened:
        yield opened


def test_setup_cfg_lists_every_package(setup_cfg: configparser.ConfigParser) -> None:
    assert sorted(setup_cfg["options"]["packages"].split()) == PACKAGES


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for _, path in modules()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_package_says_that_it_is_typed() -> None:
    # kvnode itself is a namespace without a folder, so there is no place for one marker.
    folders = {path.parent for _, path in modules()}
    assert [str(folder) for folder in folders if not (folder / "py.typed").is_file()] == []


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_every_module_is_importable_from_the_project(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == dict(modules())[name]


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(tree: Path, wheel: zipfile.ZipFile) -> None:
    wanted = {
        f"kvnode/{path.relative_to(tree)}"
        for part in PARTS
        for path in (tree / part).rglob("*")
        if path.suffix == ".py" or path.name in {"py.typed", "FORMAT.md"} or path.parent.name == "static"
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == wanted


def test_wheel_has_the_command_and_the_bounds(wheel: zipfile.ZipFile, setup_cfg: configparser.ConfigParser) -> None:
    texts = {name.rpartition("/")[2]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "kvnode = kvnode.cli.__main__:main" in texts["entry_points.txt"]
    assert f"Version: {setup_cfg['metadata']['version']}\n" in texts["METADATA"]
    assert "the kvnode authors" in texts["LICENSE"]
    assert re.search(r"^Requires-Python: (<3.13,>=3.11|>=3.11,<3.13)$", texts["METADATA"], re.MULTILINE)


def test_every_dependency_has_a_lower_and_an_upper_bound(setup_cfg: configparser.ConfigParser) -> None:
    lists = (setup_cfg["options"]["install_requires"], setup_cfg["options.extras_require"]["test"])
    lines = [line for text in lists for line in text.split("\n") if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z_-]+ >=[\d.]+,<\d[\d.]*", line)] == []


def test_installed_version_is_the_one_of_the_sources(setup_cfg: configparser.ConfigParser) -> None:
    assert importlib.metadata.version("kvnode") == setup_cfg["metadata"]["version"]


def test_supported_versions_agree(setup_cfg: configparser.ConfigParser) -> None:
    """The same two versions are named wherever a tool has to be told."""
    script = (ROOT / "compose" / "python-env").read_text("utf-8")
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    found = re.search(r"^supported=\((.*)\)$", script, re.MULTILINE)
    assert found
    assert sorted(found[1].split()) == ["3.11", "3.12"]
    assert setup_cfg["options"]["python_requires"] == ">=3.11,<3.13"
    assert re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"]) == ["3.11", "3.12"]
    # The tools check for the oldest.
    assert setup_cfg["mypy"]["python_version"] == "3.11"
    assert tools["tool"]["ruff"]["target-version"] == "py311"
