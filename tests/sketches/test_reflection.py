"""Reflection: a critic reads the best sample, the prompt is rewritten, an editor starts from the image.

Two generators in one search, answers from outside, prompts and input images that change: killed after every
event it resumes to the same bytes, and every candidate of every round is made again from its record.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tts_vision
from tiny_pipelines import TINY
from tts_vision import Condition, Result, SearchContext, State
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.journal import read_asset
from tts_vision.media import pixels
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.replays import recreate
from tts_vision.resolve import Live
from tts_vision.runner import Observer, run
from tts_vision.sampler import Sampler
from tts_vision.trace import Event, answers
from tts_vision.types import Media, Prompt

PROMPT = "two red circles"
CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 2.0}
ROUNDS = 2


def bright(images: Sequence[Media], prompts: Sequence[str]) -> list[float]:
    """A reward that prefers bright images."""
    return [float(pixels(image).mean()) for image in images]


def drafter() -> Sampler:
    return DiffusersSampler(TINY["stable_diffusion"].build(), options=SamplerOptions(pipeline_kwargs=CALL))


def editor() -> Sampler:
    call = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 2.0}
    sampler = DiffusersSampler(
        TINY["stable_diffusion_img2img"].build(), options=SamplerOptions(pipeline_kwargs=call)
    )
    sampler.name = "editor"
    return sampler


def reflect(
    ctx: SearchContext,
    *,
    critic: Callable[[str, Image.Image], str],
    corrector: Sampler,
    n: int = 2,
    asks: str = "critic",
) -> State:
    """ReflectionFlow's loop: the best sample is criticised, and edited by the corrected prompt."""
    x = ctx.finish(ctx.init(n))
    ctx.score(x)
    edits = ctx.using(corrector)
    text = ctx.prompt.text
    for _ in range(ROUNDS):
        assert ctx.best is not None
        image = ctx.best.load()
        text = ctx.ask(asks, critic, text, image, cost={"critic": 1}, expected=text)
        assert isinstance(image, Image.Image)
        x = edits.finish(edits.init(n, Condition(text, images={"image": image})))
        edits.score(x)
    return x


class Critic:
    """A language model: it never answers twice alike."""

    def __init__(self) -> None:
        self.words = map(str, itertools.count())
        self.asked = 0

    def __call__(self, text: str, image: Image.Image) -> str:
        self.asked += 1
        return f"{text} {next(self.words)}"


class Killed(BaseException):
    pass


DRAFTER, EDITOR = drafter(), editor()


def search(folder: Path, critic: Critic, progress: Observer | None = None, asks: str = "critic") -> Result:
    def algorithm(ctx: SearchContext) -> State:
        return reflect(ctx, critic=critic, corrector=EDITOR, asks=asks)

    live = Live(pipe=DRAFTER, algorithm=algorithm, verifier=bright)
    config = RunConfig(
        prompt=PROMPT, model="<m>", algorithm="<a>", verifier="<v>", budget="40x", seed=3, max_batch=1
    )
    return run(config, live, output=folder, resume=True, progress=progress, figures=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, Path]]:
    folder = tmp_path_factory.mktemp("reflection") / "whole"
    yield search(folder, Critic()), folder


def test_the_critic_is_charged_and_recorded(whole: tuple[Result, Path]) -> None:
    result, _ = whole
    assert result.spent.calls == {"bright": 2 * (1 + ROUNDS), "critic": ROUNDS}
    assert [a.value for a in answers(result.trace, "critic")] == [f"{PROMPT} 0", f"{PROMPT} 0 1"]


def test_every_candidate_says_what_it_was_made_of(whole: tuple[Result, Path]) -> None:
    result, folder = whole
    prompts = {c.uid: c.text["prompt"] for c in result.population}
    assert prompts == {0: PROMPT, 1: PROMPT, 2: f"{PROMPT} 0", 3: f"{PROMPT} 0"} | dict.fromkeys(
        (4, 5), f"{PROMPT} 0 1"
    )
    edited = result.lineage(5)
    assert [a.origin for a in edited] == ["init"] and edited[0].sampler == "editor"
    assert edited[0].condition is not None
    (name,) = edited[0].condition["images"].values()
    best = max((c for c in result.population if c.uid < 4), key=lambda c: c.score.value)
    assert np.array_equal(pixels(read_asset(folder, name).value), pixels(best.load()))  # type: ignore[arg-type]
    stored = Image.open(next(c.path for c in result.population if c.uid == 5))  # type: ignore[arg-type]
    assert json.loads(stored.text["condition"]) == edited[0].condition  # type: ignore[attr-defined]
    assert stored.text["asked_prompt"] == PROMPT  # type: ignore[attr-defined]
    # judged by the prompt of the user, and no row seed makes it again without its image
    assert "row_seed" not in stored.text  # type: ignore[attr-defined]


def test_every_candidate_of_every_round_is_made_again(whole: tuple[Result, Path]) -> None:
    result, folder = whole
    ctx = SearchContext(DRAFTER, bright, Prompt(PROMPT), seed=3)
    others = {"editor": EDITOR}
    for candidate in result.population:
        chain = result.lineage(candidate.uid)
        again = recreate(ctx, chain, candidate.step, lambda name: read_asset(folder, name), others)
        assert np.array_equal(pixels(again), pixels(candidate.load())), candidate.uid


def test_killed_after_every_event_it_resumes_to_the_same_bytes(
    whole: tuple[Result, Path], tmp_path: Path
) -> None:
    result, folder = whole
    events = len(result.trace)
    for count in range(1, events + 1):
        path, seen = tmp_path / str(count), 0

        def die(ctx: SearchContext, event: object, count: int = count) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                raise Killed

        critic = Critic()
        try:
            search(path, critic, die)
        except Killed:
            search(path, critic)
        assert critic.asked == ROUNDS, f"asked again after a kill at event {count}"
        assert contents(path) == contents(folder), f"killed after event {count}"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a finished search but the trace; of its result everything but times."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in {"trace.jsonl", "scaling.png"}:
            files[name] = path.read_bytes()
    result = json.loads(files["result.json"])
    del result["timing"]
    files["result.json"] = json.dumps(result).encode()
    return files


def test_a_resumed_search_that_asks_something_else_is_refused(tmp_path: Path) -> None:
    def die(ctx: SearchContext, event: Event) -> None:
        if event.what == "critic":
            raise Killed

    with pytest.raises(Killed):
        search(tmp_path / "x", Critic(), die)

    with pytest.raises(tts_vision.StorageError, match="must repeat itself"):
        search(tmp_path / "x", Critic(), asks="somebody else")
