"""Each file of docs/examples is shown as it is, and does what its kind of plugin must."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tts_vision
from pages import DOCS, PAGES, blocks
from tts_vision.context import SearchContext
from tts_vision.features import load_extractor
from tts_vision.registry import lookup
from tts_vision.testing.contracts import (
    AlgorithmContract,
    DifferentiableVerifierContract,
    Killed,
    SamplerContract,
    kills,
)
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Prompt

EXAMPLES = DOCS / "examples"


KINDS = {
    "algorithm": ("keep_half", "antithetic", "reflect", "two_models"),
    "verifier": ("contrast",),
    "features": ("colour_grid",),
    "model": ("mosaic", "guided_playground"),
    "rewriter": ("numerals",),
    "corrector": ("brighter",),
}


def example(name: str) -> ModuleType:
    """An example as the module that ``file.py@name`` makes of it."""
    kind: Any = next(kind for kind, names in KINDS.items() if name in names)
    attribute = {"contrast": "Contrast", "colour_grid": "ColourGrid", "guided_playground": "load"}
    entry = lookup(kind, f"{EXAMPLES / name}.py@{attribute.get(name, name)}")
    return sys.modules[entry.target.__module__]


def test_pages_show_the_files_as_they_are() -> None:
    shown = {block.example: block.code for page in PAGES for block in blocks(page) if block.example}
    for path in EXAMPLES.glob("*.py"):
        assert shown.pop(path.stem, None) == path.read_text(), (
            f"docs/examples/{path.name} differs from its page"
        )
    assert not shown


class TestKeepHalf(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., Any]:
        return example("keep_half").keep_half


class TestAntithetic(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., Any]:
        return example("antithetic").antithetic

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"pairs": 2}


class TestReflect(AlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., Any]:
        return example("reflect").reflect

    def test_survives_a_kill_anywhere(self) -> None:
        pytest.skip("the critic looks at images, which only a result folder keeps: tested below")


class TestContrast(DifferentiableVerifierContract):
    @pytest.fixture
    def verifier(self) -> Any:
        return example("contrast").Contrast()

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        rng = np.random.default_rng(0)
        return [
            Image.fromarray((128 + spread * rng.standard_normal((16, 16, 3))).clip(0, 255).astype(np.uint8))
            for spread in (5, 20, 40)
        ]


class TestMosaic(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Any:
        return example("mosaic").MosaicSampler()


@pytest.mark.parametrize(
    "algorithm", ["best_of_n", "evosearch", "fk_steering", "search_over_paths", "beam_search"]
)
def test_algorithms_run_on_the_example_sampler(algorithm: str, tmp_path: Path) -> None:
    result = tts_vision.search(
        example("mosaic").MosaicSampler(),
        "red and yellow",
        algorithm=algorithm,
        verifier=example("contrast").Contrast(),
        budget="6x",
    )
    assert not result.is_preview and len(result.population) >= 2
    assert result.spent.nfe <= 48


def test_the_example_sampler_reads_its_condition() -> None:
    sampler = example("mosaic").MosaicSampler()
    images = {
        text: np.asarray(
            tts_vision.search(sampler, text, verifier=lambda m, p: [0.0] * len(m), budget="1x").best.load()
        )
        for text in ("red", "blue")
    }
    red, blue = ((image == example("mosaic").COLOURS[text]).all(-1).mean() for text, image in images.items())
    assert red > 0.5 and blue > 0.5


def test_a_search_by_the_example_move_is_replayed(tmp_path: Path) -> None:
    example("antithetic")
    tts_vision.search("playground", "a blue star", algorithm="antithetic", budget="4x", output=tmp_path / "x")
    result = tts_vision.load_result(tmp_path / "x")
    assert {link.origin for c in result.population for link in result.lineage(c.uid)} == {"init", "negate"}
    assert tts_vision.replay(tmp_path / "x").max_difference <= 1


def test_reflection_survives_a_kill_anywhere(tmp_path: Path) -> None:
    def search(folder: str, die_after: int = -1) -> int:
        seen = 0

        def observe(context: Any, event: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == die_after:
                raise Killed

        with suppress(Killed):
            tts_vision.search(
                example("mosaic").MosaicSampler(),
                "red",
                algorithm=example("reflect").reflect,
                algorithm_params={"n": 2, "rounds": 3},
                verifier=example("contrast").Contrast(),
                output=tmp_path / folder,
                resume=True,
                progress=observe,
            )
        return seen

    def files(folder: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.png") if p.name != "scaling.png"}

    events = search("whole")
    for count in kills(events, most=8):
        search(f"killed-{count}", die_after=count)
        search(f"killed-{count}")
        assert files(f"killed-{count}") == files("whole"), f"killed after event {count}"


def test_the_rewritten_prompt_is_recorded_and_the_users_judges(tmp_path: Path) -> None:
    judged: set[str] = set()

    def verifier(images: list[Any], prompts: list[str]) -> list[float]:
        judged.update(prompts)
        return [float(np.asarray(image).mean()) for image in images]

    result = tts_vision.search(
        "playground", "a blue star", algorithm=example("reflect").reflect, verifier=verifier, budget="4x"
    )
    assert judged == {"a blue star"}
    assert {c.text["prompt"] for c in result.population} == {
        "a blue star",
        "a blue star, on a plain background",
    }


def test_the_example_model_has_its_own_defaults_and_verifier() -> None:
    example("guided_playground")
    result = tts_vision.search("guided-playground", "a blue star", budget="1x")
    plain = tts_vision.search("playground", "a blue star", budget="1x")
    assert result.config.verifier == "playground_clip"
    assert not np.array_equal(np.asarray(result.best.load()), np.asarray(plain.best.load()))


def test_the_example_features_have_a_row_each() -> None:
    extractor = load_extractor(f"{EXAMPLES / 'colour_grid.py'}@colour_grid:side=2")
    found = extractor.features([Image.new("RGB", (9, 7), colour) for colour in ("red", "black")])
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0, 0.0, 0.0] * 4, [0.0] * 12]


def test_samples_of_two_generators_compete(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    algorithm = f"{EXAMPLES / 'two_models.py'}@two_models"
    result = tts_vision.search("playground", "a blue star", algorithm=algorithm, budget="4x", output=folder)
    assert len(result.population) >= 4
    assert {link.sampler for c in result.population for link in result.lineage(c.uid)} == {
        None,
        "playground-var",
    }
    assert tts_vision.replay(folder).max_difference <= 1


def test_the_example_rewriter_gives_other_wordings() -> None:
    found = example("numerals").numerals("two red circles and three stars", 5)
    assert found[:2] == ["2 red circles and three stars", "exactly two red circles and three stars"]
    assert len(found) == 5


def test_the_example_corrector_begins_from_the_rejected_sample() -> None:
    ctx = SearchContext(GaussianMixtureSampler(num_steps=4), TargetReward(), Prompt("x"), seed=0)
    corrector = f"{EXAMPLES / 'brighter.py'}@brighter"
    lookup("algorithm", "reflection_flow").target(ctx, n=2, rounds=1, branches=1, corrector=corrector)
    assert ctx.best is not None
    rejected = next(event for event in ctx.events if event.what == "reflection").uids[0]
    (back,) = [event for event in ctx.events if event.what == "renoise"]
    assert back.kind == "birth" and back.parents == (rejected,) and back.step == 2
