"""Settings of the whole suite."""

import hypothesis
import pytest

# Asserts inside the shared helpers explain themselves only when pytest rewrites them before the first import.
pytest.register_assert_rewrite("support")

# An example that is slow has met a busy machine. What else the environment asks of hypothesis stays.
hypothesis.settings.register_profile("patient", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single tests; options have to be defined up here."""
    group = parser.getgroup("kvnode")
    group.addoption("--long", action="store_true", help="make the fault tests try many more cases")
    group.addoption("--crash-case", metavar="CASE", help="the one case for test_crash_everywhere to run")
    group.addoption("--simulation-seed", type=int, metavar="SEED", help="the one seed to simulate replication with")
