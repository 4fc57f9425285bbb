"""The begin of a node's process: what is set before the rest is imported, and what is not imported at all."""

import os
import subprocess
import sys

_CODE = """
import gc, os, sys
from kvnode.node import launch
from kvnode.node.config import Config
import kvnode.cli.commands.start
assert "aiohttp" not in sys.modules, "what is set comes too late"
def run(config, join):
    found = {"prometheus_client", "rich", "kvnode.node.rest.openapi.document"} & sys.modules.keys()
    print(config.name, join, gc.get_threshold()[0], os.environ.get("SSL_CERT_FILE"), sorted(found))
    return 7
real = __import__
def importing(name, *args):
    module = real(name, *args)
    if name == "kvnode.node.service":
        module.run = run
    return module
import builtins
builtins.__import__ = importing
print(launch.launch(Config(name="n1")))
"""


def test_what_a_start_does_not_need_is_not_imported_and_what_comes_first_is_set() -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SSL_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CODE], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["n1 None 20000 None []", "7"], "")
