"""Helpers shared by tests of every kind.

pytest runs with `--import-mode=importlib`, which puts no test folder on `sys.path`. `pythonpath = tests`
in setup.cfg does so for this one, so that a test writes `from support.x import y`. The test folders
themselves have no `__init__.py`, and no test imports another test: what two of them need lives here.
"""
