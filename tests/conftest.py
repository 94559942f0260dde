"""Opt-in marks: slow tests and tests that need published weights run only when asked for."""

from __future__ import annotations

import pytest

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
