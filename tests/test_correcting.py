"""Correctors in whole searches: killed they resume to the same bytes, and all they begin is made again."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Answer, ChatServer, asked, serving
from PIL import Image
from torch import Tensor
from toy_editor import tiny_editor
from toy_judges import REASON, Reasoning

import tts_vision
from tiny_pipelines import TINY
from toy_search import events, toy_context
from tts_vision import Result, SearchContext, State
from tts_vision.algorithms._attempts import Attempt
from tts_vision.algorithms._reflection import correct
from tts_vision.condition import Condition
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.correcting import CannotCorrect, Rejected, load_corrector
from tts_vision.correctors.remask import RemaskCorrector, tokens_in
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.figures import lineage_svg, reflection_sheet
from tts_vision.journal import read_asset
from tts_vision.media import pixels
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.replays import recreate
from tts_vision.resolve import Live
from tts_vision.runner import Observer, run
from tts_vision.saliency import CELLS, salient_regions
from tts_vision.testing.contracts import kills
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

sys.path.insert(0, str(Path(__file__).parent / "tokens"))
from tiny_showo import tiny_showo

PROMPT = "two red circles"
CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 2.0}
EDITOR = f"{Path(__file__).with_name('toy_editor.py')}@tiny_editor"


class Bright(Verifier):
    """Prefers bright images; its reward has gradients, and it says that they are too dark."""

    name = "bright"
    accepts: frozenset[Modality] = frozenset({"image"})
    questions = frozenset({"clarity", "potential"})
    differentiable = True

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        values = [float(pixels(image).mean()) / 255 for image in media]
        return [Score(value=value, reason="too dark", satisfied=False) for value in values]

    def clarity(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value=1.0)] * len(media)

    def potential(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        values = [s.value for s in self.score(media, prompts)]
        return [Score(value=value, satisfied=value > 0.3) for value in values]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return pixels[..., : pixels.shape[-1] // 2].square().mean((1, 2, 3))  # of the left half


class Killed(BaseException):
    pass


DRAFTER = DiffusersSampler(TINY["stable_diffusion"].build(), options=SamplerOptions(pipeline_kwargs=CALL))
TOKENS = MaskedSampler(tiny_showo())
EDITS = DiffusersSampler(tiny_editor(), options=SamplerOptions(stochastic=False))


class Criticism:
    """A language model that never answers twice alike."""

    def __init__(self) -> None:
        self.words = map(str, itertools.count())

    def __call__(self, request: dict[str, Any]) -> Answer:
        return Answer(f"brighter {next(self.words)}")


def search(
    folder: Path,
    algorithm: str,
    params: dict[str, Any],
    pipe: Any,
    progress: Observer | None = None,
    *,
    figures: bool = False,
) -> Result:
    config = RunConfig(
        prompt=PROMPT,
        model="<m>",
        algorithm=algorithm,
        algorithm_params=params,
        verifier="<v>",
        budget="40x",
        seed=3,
        max_batch=1,
    )
    live = Live(pipe=pipe, verifier=Bright())
    return run(config, live, output=folder, resume=True, progress=progress, figures=figures)


SEARCHES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "prompt": (DRAFTER, "parm_pp", {"n": 2, "max_reflections": 2, "corrector": "prompt"}),
    "edit": (DRAFTER, "reflection_flow", {"n": 2, "rounds": 2, "corrector": "edit"}),
    "editor": (DRAFTER, "parm_pp", {"n": 2, "max_reflections": 2, "corrector": f"edit:model={EDITOR}"}),
    "remask": (TOKENS, "parm_pp", {"n": 2, "max_reflections": 2, "corrector": "remask"}),
}


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


def killed_and_resumed(folder: Path, count: int, begin: Callable[[Path, Observer | None], Result]) -> None:
    seen = 0

    def die(ctx: SearchContext, event: object) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            raise Killed

    try:
        begin(folder, die)
    except Killed:
        begin(folder, None)


@pytest.mark.parametrize("name", SEARCHES)
def test_killed_it_resumes_to_the_same_bytes_and_all_is_made_again(name: str, tmp_path: Path) -> None:
    pipe, algorithm, params = SEARCHES[name]

    def begin(folder: Path, progress: Observer | None = None) -> Result:
        return search(folder, algorithm, params, pipe, progress)

    result = begin(tmp_path / "whole")
    assert len(result.reflections) >= 2 and any(r.corrections for r in result.reflections)
    for count in kills(len(result.trace), 3):
        folder = tmp_path / str(count)
        killed_and_resumed(folder, count, begin)
        assert contents(folder) == contents(tmp_path / "whole"), f"killed after event {count}"
    ctx = SearchContext(pipe, Bright(), Prompt(PROMPT), seed=3, open_sampler=opened)
    for candidate in result.population:
        chain = result.lineage(candidate.uid)
        again = recreate(ctx, chain, candidate.step, lambda file: read_asset(tmp_path / "whole", file))
        assert np.array_equal(pixels(again), pixels(candidate.load())), candidate.uid


def opened(name: str) -> DiffusersSampler:
    assert name.startswith(EDITOR)
    return EDITS


# Endpoints


def reasons_of(server: ChatServer) -> list[str]:
    return [asked(request) for request in server.requests]


@pytest.mark.parametrize("corrector", ["prompt", "prompt:base_url={url},model=m"])
def test_an_endpoint_is_asked_once_also_by_a_resumed_search(corrector: str, tmp_path: Path) -> None:
    with serving(Criticism()) as server:
        critic = f"chat:base_url={server.base_url},model=m"
        fix = corrector.replace("{url}", server.base_url)
        params = {"n": 2, "rounds": 2, "branches": 1, "critic": critic, "corrector": fix}

        def begin(folder: Path, progress: Observer | None = None) -> Result:
            return search(folder, "reflection_flow", params, DRAFTER, progress)

        result = begin(tmp_path / "whole")
        asked_each = len(server.requests)
        assert asked_each == sum(result.spent.calls.get(n, 0) for n in ("critic", "prompt_corrector")) >= 2
        assert result.reflections[0].reason == "brighter 0"
        (event,) = [e for e in result.trace if e.what == "critic"][:1]
        assert f'"{PROMPT}"' in reasons_of(server)[0] and "too dark" in reasons_of(server)[0]
        assert event.spent.calls["critic"] == 1
        at = [i for i, e in enumerate(result.trace, start=1) if e.what in {"critic", "prompt_corrector"}]
        for count in at[:2]:
            server.requests.clear()
            killed_and_resumed(tmp_path / str(count), count, begin)
            assert len(server.requests) == asked_each, f"asked again after event {count}"


def test_an_endpoint_without_an_answer_leaves_the_verifiers_reason(tmp_path: Path) -> None:
    with serving(lambda request: Answer(status=400, body="no")) as server:
        critic = f"chat:base_url={server.base_url},model=m"
        fix = f"prompt:base_url={server.base_url},model=m"
        params = {"n": 2, "rounds": 1, "branches": 1, "critic": critic, "corrector": fix}
        result = search(tmp_path / "x", "reflection_flow", params, DRAFTER)
    assert result.reflections[0].reason == "too dark"
    (correction,) = result.reflections[0].corrections
    (link,) = result.lineage(correction.uids[0])
    assert link.condition is None, "the prompt stays as it is"


def test_fusion_shows_the_best_samples_together(tmp_path: Path) -> None:
    with serving(Criticism()) as server:
        critic = f"chat:base_url={server.base_url},model=m"
        params = {"n": 3, "rounds": 1, "top": 3, "critic": critic, "corrector": "prompt"}
        result = search(tmp_path / "x", "fusion", params, DRAFTER)
    (request,) = server.requests
    shown = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == 3 and "These 3 images" in asked(request)
    (told,) = result.reflections
    assert told.reason == "brighter 0"
    (link,) = result.lineage(told.corrections[0].uids[0])
    assert link.condition == {"text": f"{PROMPT}, brighter 0"}


# Prompts


def test_the_reason_is_put_into_the_template() -> None:
    ctx = toy_context(verifier=Reasoning())
    corrector = load_corrector("prompt:template=Not {reason} but {prompt}.", ctx)
    state = ctx.finish(ctx.init(1))
    ctx.score(state)
    _, children = corrector.correct(ctx, Rejected(ctx, state, "a dot", REASON), 3)
    assert [c.text for c in children.conditions] == [f"Not {REASON} but a dot."] * 3 and children.step == 0
    _, plain = corrector.correct(ctx, Rejected(ctx, state, "a dot"), 1)
    assert plain.conditions[0].text == "a dot"


@pytest.mark.parametrize("corrector", ["prompt", "edit:strength=0.5", "resample"])
def test_a_prompt_that_the_generator_refuses_gives_way_to_fresh_samples(corrector: str) -> None:
    ctx = SearchContext(TOKENS, Bright(), Prompt(PROMPT), seed=0)
    words = " ".join(["bright"] * 40)  # Show-o's block of text is shorter
    rejected = Rejected(ctx, judged(ctx), f"{PROMPT} {words}", "too dark")
    made = load_corrector(corrector, ctx)
    with pytest.raises(CannotCorrect, match=r"refuses the prompt .* must have at most .* tokens"):
        made.correct(ctx, rejected, 2)
    with pytest.warns(tts_vision.errors.SearchWarning, match="fresh samples take the place"):
        _, fresh = correct(ctx, made, rejected, 2)
    assert [c.text for c in fresh.conditions] == [PROMPT] * 2 and ctx.finish(fresh).step == ctx.num_steps


@pytest.mark.filterwarnings("ignore::tts_vision.errors.SearchWarning")
@pytest.mark.parametrize("algorithm", ["parm_pp", "reflection_flow"])
def test_such_a_search_killed_anywhere_resumes_to_the_same_bytes(algorithm: str, tmp_path: Path) -> None:
    sizes = {"parm_pp": {"n": 2, "max_reflections": 1}, "reflection_flow": {"n": 2, "rounds": 1}}
    template = "{prompt} {reason} " + " ".join(["bright"] * 40)
    params = {**sizes[algorithm], "corrector": f"prompt:template={json.dumps(template)}"}

    def begin(folder: Path, progress: Observer | None = None) -> Result:
        return search(folder, algorithm, params, TOKENS, progress)

    whole = begin(tmp_path / "whole")
    assert any("refuses the prompt" in warning for warning in whole.warnings)
    assert all(reflection.corrections for reflection in whole.reflections)
    for count in range(2, len(whole.trace), max(1, len(whole.trace) // 5)):
        killed_and_resumed(tmp_path / str(count), count, begin)
        assert contents(tmp_path / str(count)) == contents(tmp_path / "whole")


@pytest.mark.parametrize("corrector", ["prompt", "edit", "remask"])
@pytest.mark.parametrize("algorithm", ["parm_pp", "reflection_flow"])
def test_reflection_without_guidance_takes_one_evaluation_a_step(algorithm: str, corrector: str) -> None:
    plain = MaskedSampler(
        tiny_showo(), options=SamplerOptions(pipeline_kwargs={"guidance_scale": 0, "num_inference_steps": 4})
    )
    sizes = {"parm_pp": {"n": 2, "max_reflections": 1}, "reflection_flow": {"n": 2, "rounds": 1}}
    result = tts_vision.search(
        plain,
        PROMPT,
        algorithm=algorithm,
        algorithm_params={**sizes[algorithm], "corrector": corrector},
        verifier=Bright(),
        budget="40x",
    )
    assert result.reflections and result.reflections[0].corrections
    assert result.spent.macs <= (result.budget.macs or 0)
    guided = MaskedSampler(tiny_showo(), options=SamplerOptions(pipeline_kwargs={"num_inference_steps": 4}))
    condition = plain.condition_of(Prompt(PROMPT))
    assert (plain.cost(condition, 0, 4).nfe, guided.cost(condition, 0, 4).nfe) == (4, 8)
    assert all(candidate.facts["guidance_scale"] == 0 for candidate in result.population)


# Edits


def test_its_own_generator_goes_back_by_the_strength() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=10))
    state = ctx.finish(ctx.init(2))
    for strength, step in ((0.3, 7), (1.0, 0), (0.01, 9)):
        corrector = load_corrector(f"edit:strength={strength}", ctx)
        _, children = corrector.correct(ctx, Rejected(ctx, state.select([1]), "x", REASON), 2)
        assert children.step == step and children.conditions[0].text == f"x, {REASON}"
        back = events(ctx, "renoise")[-1]
        assert back.parents == (1, 1)


def judged(ctx: SearchContext, n: int = 1) -> State:
    state = ctx.finish(ctx.init(n))
    ctx.score(state)
    return state


@pytest.mark.parametrize("size", [None, (24, 16)])
def test_an_editor_gets_the_image_and_keeps_its_own_size(size: tuple[int, int] | None) -> None:
    ctx = SearchContext(DRAFTER, Bright(), Prompt(PROMPT), seed=0, open_sampler=opened)
    written = "" if size is None else f",size={size[0]}x{size[1]}"
    corrector = load_corrector(f"edit:model={EDITOR}{written}", ctx)
    state = judged(ctx)
    edits, children = corrector.correct(ctx, Rejected(ctx, state, PROMPT, "too dark"), 2)
    condition = children.conditions[0]
    assert isinstance(condition, Condition) and condition.text == f"{PROMPT}, too dark"
    given = condition.images["image"].value
    assert isinstance(given, Image.Image) and given.size == (size or (16, 16))
    done = edits.finish(children)
    edits.score(done)
    made = ctx.candidates[done.uids[0]].load()
    assert isinstance(made, Image.Image) and made.size == (size or (16, 16))
    # what an editor made can be edited again, and corrected by the first generator
    again, more = corrector.correct(ctx, Rejected(edits, done.select([0]), PROMPT, "too dark"), 1)
    assert again.sampler is edits.sampler and more.step == 0


def test_the_strength_is_an_argument_of_the_editors_call(tmp_path: Path) -> None:
    params = {"n": 2, "rounds": 1, "branches": 1, "corrector": f"edit:model={EDITOR},strength=0.25"}
    result = search(tmp_path / "x", "reflection_flow", params, DRAFTER)
    (correction,) = result.reflections[0].corrections
    (link,) = result.lineage(correction.uids[0])
    assert link.sampler == f"{EDITOR}?strength=0.25"
    made = next(c for c in result.population if c.uid == correction.uids[0])
    assert made.step == 1 and made.facts["pipeline_kwargs"]["strength"] == 0.25  # of four steps


def test_what_cannot_edit_is_refused() -> None:
    ctx = SearchContext(DRAFTER, Bright(), Prompt(PROMPT), seed=0, open_sampler=lambda name: TOKENS)
    with pytest.raises(CapabilityError, match="must start from the image of its condition but 'm' has"):
        load_corrector("edit:model=m", ctx)
    with pytest.raises(ConfigError, match="size must be written WIDTHxHEIGHT but got 'big'"):
        load_corrector("edit:model=m,size=big", ctx)
    with pytest.raises(ConfigError, match=r"written 'MODEL\?key=value&key=value' but got 'm\?x'"):
        tts_vision.search(
            DRAFTER,
            PROMPT,
            algorithm="parm_pp",
            algorithm_params={"corrector": "edit:model=m?x"},
            verifier=Bright(),
        )


# Masks


def test_regions_are_tokens_of_the_grid() -> None:
    assert tokens_in([(0.0, 0.0, 1.0, 1.0)], (2, 3)) == (0, 1, 2, 3, 4, 5)
    assert tokens_in([(0.5, 0.0, 1.0, 0.5)], (4, 4)) == (2, 3, 6, 7)
    assert tokens_in([(0.5, 0.0, 1.0, 0.5)], (4, 4), grow=1) == (1, 2, 3, 5, 6, 7, 9, 10, 11)
    assert tokens_in([(0.3, 0.3, 0.31, 0.31)], (4, 4)) == (), "no token has its middle there"
    assert tokens_in([], (4, 4)) == ()


def test_tokens_that_the_regions_name_are_drawn_again_and_no_others() -> None:
    ctx = SearchContext(TOKENS, Bright(), Prompt(PROMPT), seed=0)
    state = judged(ctx)
    corrector = RemaskCorrector(steps=0.5)
    rejected = Rejected(ctx, state, PROMPT, "too dark", ((0.0, 0.0, 0.5, 0.5),))
    own, children = corrector.correct(ctx, rejected, 3)
    rows, columns = TOKENS.grid or (0, 0)
    inside = set(tokens_in(rejected.regions, (rows, columns)))
    others = [i for i in range(rows * columns) if i not in inside]
    assert own is ctx and 0 < children.step < ctx.num_steps
    done = ctx.finish(children)
    assert torch.equal(done.latents[:, others], state.latents[[0, 0, 0]][:, others])
    assert len({tuple(row) for row in done.latents.tolist()}) > 1


def test_without_regions_the_gradient_of_the_verifier_says_where() -> None:
    ctx = SearchContext(TOKENS, Bright(), Prompt(PROMPT), seed=0)
    state = judged(ctx)
    _ = RemaskCorrector(share=0.2).correct(ctx, Rejected(ctx, state, PROMPT), 1)
    (event,) = events(ctx, "regions")
    assert event.uids == state.uids and ctx.ledger.calls["bright"] == 2
    assert all(right <= 0.5 for _, _, right, _ in event.value), "its reward is that of the left half"
    (birth,) = [e for e in ctx.events if e.kind == "birth" and e.parents]
    _, columns = TOKENS.grid or (0, 0)
    assert all(token % columns < columns / 2 for token in birth.move["tokens"])


def test_without_anything_to_go_by_fresh_samples_are_drawn() -> None:
    class Plain(Bright):
        differentiable = False

    ctx = SearchContext(TOKENS, Plain(), Prompt(PROMPT), seed=0)
    corrector = load_corrector("remask", ctx)
    attempt = Attempt(ctx, judged(ctx), PROMPT)
    with pytest.raises(CannotCorrect, match="no part of the image is known to be wrong"):
        corrector.correct(ctx, attempt.rejected(), 1)
    with pytest.warns(tts_vision.errors.SearchWarning, match="'remask' cannot correct"):
        _, fresh = correct(ctx, corrector, attempt.rejected(), 2)
    assert fresh.step == 0 and len(fresh) == 2


def test_models_without_a_grid_of_tokens_are_refused() -> None:
    with pytest.raises(
        CapabilityError, match="needs a model of image tokens on a grid but 'gaussian_mixture'"
    ):
        load_corrector("remask", toy_context())
    for wrong in ("share=0", "steps=2", "grow=-1"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            load_corrector(f"remask:{wrong}", toy_context())


def test_salient_cells_are_those_of_the_largest_gradient() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 99, (32, 32, 3), dtype=np.uint8))
    image.paste((255, 255, 255), (0, 0, 4, 4))  # the brightest cell has the largest gradient of a square
    found = salient_regions(Bright(), image, [PROMPT], share=1 / CELLS**2)
    assert found == [(0.0, 0.0, 1 / CELLS, 1 / CELLS)]
    many = salient_regions(Bright(), image, [PROMPT, "x"], share=1.0)
    assert len(many) == CELLS**2 // 2, "cells without a gradient are left out"


# The report


def test_the_report_shows_the_reflections_image_by_image(tmp_path: Path) -> None:
    result = search(tmp_path / "x", *SEARCHES["edit"][1:], DRAFTER, figures=True)  # type: ignore[arg-type]
    told = json.loads((tmp_path / "x" / "result.json").read_text())["reflections"]
    assert [t["uid"] for t in told] == [r.uid for r in result.reflections]
    assert told[0]["reason"] == "too dark" and told[0]["corrections"][0]["corrector"] == "edit"
    children = {uid for t in told for c in t["corrections"] for uid in c["uids"]}
    assert children <= {c.uid for c in result.population}
    sheet = Image.open(tmp_path / "x" / "reflections.png")
    drawn = reflection_sheet(result.reflections, result.population, title=PROMPT)
    assert np.array_equal(np.asarray(sheet), np.asarray(drawn))
    one = reflection_sheet(result.reflections[:1], result.population, title=PROMPT)
    assert one.height < drawn.height and one.width == drawn.width
    tree = (tmp_path / "x" / "lineage.svg").read_text()
    assert "rejected: too dark" in tree and "by edit" in tree


def test_the_report_frames_what_was_drawn_again(tmp_path: Path) -> None:
    result = search(tmp_path / "x", *SEARCHES["remask"][1:], TOKENS)  # type: ignore[arg-type]
    assert all(r.regions for r in result.reflections if r.corrections)
    by_uid = {c.uid: c for c in result.population}
    framed = reflection_sheet(result.reflections[:1], [by_uid[result.reflections[0].uid]])
    bare = reflection_sheet([replace(result.reflections[0], regions=())], [by_uid[result.reflections[0].uid]])
    assert not np.array_equal(np.asarray(framed), np.asarray(bare))


def test_the_lineage_joins_new_paths_to_the_image_they_correct(tmp_path: Path) -> None:
    result = search(tmp_path / "x", *SEARCHES["prompt"][1:], DRAFTER)  # type: ignore[arg-type]
    dotted = 'stroke-dasharray="1 3"'
    corrected = [uid for r in result.reflections for c in r.corrections for uid in c.uids]
    assert lineage_svg(result.trace, result.best.uid).count(dotted) == len(corrected) > 0
    plain = [event for event in result.trace if event.what != "correction"]
    assert dotted not in lineage_svg(plain, result.best.uid)
