"""Opt-in marks: slow tests and tests that need published weights run only when asked for."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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


def pytest_collection_finish() -> None:
    _hide_from_the_collector()


@pytest.fixture(autouse=True, scope="module")
def _freeze() -> Iterator[None]:
    yield
    _hide_from_the_collector()


def _hide_from_the_collector() -> None:
    """Hides all that is alive from the garbage collector, which else looks through it again and again.

    A seventh of the time of the tests went into that: libraries have some millions of objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _disk_is_not_waited_for() -> Iterator[None]:
    """Nothing waits until the disk has what is written: tests kill processes, after which files are whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled models of images and clips take fewer steps by default, for tests about none of them."""
    from tts_vision.pipelines.playground import DEFAULTS, video_pipeline

    monkeypatch.setitem(DEFAULTS, "num_inference_steps", 5)
    load = video_pipeline.load_pipeline

    def load_quick(*arguments: Any, **options: Any) -> video_pipeline.PlaygroundVideo:
        pipe = load(*arguments, **options)
        pipe.tts_vision_defaults |= {"num_inference_steps": 3, "num_frames": 12}
        return pipe

    monkeypatch.setattr(video_pipeline, "load_pipeline", load_quick)


@pytest.fixture(autouse=True)
def _plots_are_blank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are drawn up but saved as one pixel, unless a test is marked ``draws``.

    To lay out and rasterise the plot of a result takes matplotlib ten times as long as a search on a toy.
    """
    if "draws" in request.keywords:
        return
    from matplotlib.figure import Figure

    save = Figure.savefig

    def blank(figure: Figure, target: Any, **options: Any) -> None:
        if isinstance(target, Path):
            Image.new("RGB", (1, 1)).save(target, options["format"])
        else:
            save(figure, target, **options)

    monkeypatch.setattr(Figure, "savefig", blank)
