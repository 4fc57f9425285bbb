"""Settings of the whole suite."""

import pytest

# Asserts inside the shared helpers explain themselves only when pytest rewrites them before the first import.
pytest.register_assert_rewrite("support")
