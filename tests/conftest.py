"""Opt-in marks: slow tests and tests that need published weights run only when asked for."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

# what searches note about themselves outside their folders
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="tts-vision-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

OPT_IN = {"slow": "--run-slow", "download": "--run-download"}


def pytest_addoption(parser: pytest.Parser) -> None:
    for mark, flag in OPT_IN.items():
        parser.addoption(flag, action="store_true", help=f"run tests marked {mark}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, flag in OPT_IN.items():
        if not config.getoption(flag):
            for item in items:
                if mark in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"needs {flag}"))
