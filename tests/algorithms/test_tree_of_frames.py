"""Tree-of-Frames: its cost, which nodes go on, prompts of stages, orders, the released order of events."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Answer, serving
from toy_chunks import ToyClips
from toy_judge_of_clips import Bright
from toy_tokens import TokenSampler

import tts_vision
from toy_search import events, run, toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.tree_of_frames import tree_of_frames
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError, ForkError
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.pruning import from_median, survivors
from tts_vision.registry import lookup
from tts_vision.rehearsal import rehearse
from tts_vision.rewriters.stages import stages
from tts_vision.rewriting import load_rewriter
from tts_vision.testing.contracts import AlgorithmContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Prompt, State
from tts_vision.units import by_unit, repeated, stretched, units_of

PROMPTS = ("a ball", "a ball rolls", "a ball rests")
WHOLE = "a ball rolls and rests"
OWN = f"{Path(__file__).parents[1] / 'toy_judge_of_clips.py'}@"


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 8

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return tree_of_frames

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 3}


def clips(units: int = 3, **options: Any) -> ChunkSampler:
    """A model of clips of so many chunks of two frames, each made in one decision step of four forwards."""
    toy = ToyClips((2,) * units, draws=options.pop("draws", 0.0))
    return ChunkSampler(toy, options=SamplerOptions(**options))


def context(sampler: Any = None, verifier: Any = None, **limits: Any) -> SearchContext:
    ctx = toy_context(sampler or clips(), verifier or Bright(), **limits)
    ctx._judging.prompt = Prompt(WHOLE)
    return ctx


def nodes_made(ctx: SearchContext) -> list[int]:
    """How many particles were advanced through each unit, in order."""
    return [
        len(event.uids) for event in ctx.events if event.what == "advance" and event.step > event.from_step
    ]


# Cost, by the ledger


@pytest.mark.parametrize(
    ("settings", "levels", "units"),
    [
        ({"prune": "none"}, 0, 120),
        ({"prune": "median"}, 0, 90),  # no ties
        ({"prune": "median"}, 1000, 120),  # all tie
        ({}, 0, 90),
        ({"keep": [1]}, 0, 76),
    ],
    ids=["unpruned", "median", "ties", "half", "one"],
)
def test_units_of_the_released_defaults(settings: dict[str, Any], levels: float, units: int) -> None:
    sampler = ChunkSampler(ToyClips((1,) * 16, steps=1))
    ctx = context(sampler, Bright(levels))
    price = rehearse(ctx, tree_of_frames, {"n": 5, **settings})
    tree_of_frames(ctx, n=5, **settings)
    assert ctx.ledger.spent.nfe == units and sum(nodes_made(ctx)) == units
    # the rehearsal sees ties everywhere
    assert price is not None and price.nfe == (120 if settings.get("prune") == "median" else units)


def test_the_defaults_are_those_of_the_paper_in_proportion() -> None:
    ctx = context(ChunkSampler(ToyClips((1,) * 16, steps=1)))
    tree_of_frames(ctx, n=5, prune="none")
    assert nodes_made(ctx) == [25, 10, 10, 10, 10, *[5] * 11]
    assert [stretched((5, 2, 2, 2, 2, *[1] * 11), n)[:3] for n in (1, 4, 8)] == [(5,), (5, 1, 1), (5, 2, 1)]
    pruned = context(ChunkSampler(ToyClips((1,) * 16, steps=1)))
    tree_of_frames(pruned, n=5)
    assert nodes_made(pruned)[4:] == [10, *[3] * 5, *[2] * 4, *[1] * 2], "after units 4, 9 and 13"


def test_random_linear_search_is_best_of_n() -> None:
    found = []
    for algorithm, settings in ((best_of_n, {}), (tree_of_frames, {"candidates": [1], "prune": "none"})):
        ctx = context(clips(4))
        state = algorithm(ctx, n=6, **settings)
        media = {uid: candidate.load() for uid, candidate in ctx.candidates.items()}
        found.append((state, ctx.best, {uid: clip.frames for uid, clip in media.items()}, ctx.ledger.spent))
    (same, best, frames, spent), (state, won, others, cost) = found
    assert state.uids == same.uids and torch.equal(state.latents, same.latents) and cost == spent
    assert best is not None and won is not None and (won.uid, won.score) == (best.uid, best.score)
    assert all(torch.equal(frames[uid], others[uid]) for uid in frames) and frames.keys() == others.keys()


# Which nodes go on


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([3, 3, 1, 0, -2], [0, 1, 2]), ([4, 4, 4], [0, 1, 2]), ([2, 1], [0]), ([5, 1, 2, 4, 3], [0, 3, 4])],
)
def test_from_the_median_on(scores: list[float], kept: list[int]) -> None:
    assert from_median(scores) == kept
    assert survivors(scores, "median", k=1, threshold=9) == kept


def test_rules_of_pruning() -> None:
    scores = [0.2, math.nan, 0.9, 0.5]
    assert survivors(scores, "top_k", k=2, threshold=0) == [2, 3]
    assert survivors(scores, "threshold", k=1, threshold=0.5) == [2, 3]
    assert survivors(scores, "threshold", k=1, threshold=5) == [2], "the best where none reaches it"
    assert survivors(scores, "median", k=1, threshold=0) == [2, 3]
    assert survivors(scores, "none", k=1, threshold=0) == [0, 1, 2, 3]
    assert survivors([math.nan] * 3, "median", k=1, threshold=0) == [0, 1, 2]


def test_the_best_candidates_and_nodes_go_on() -> None:
    ctx = context(clips(4))
    tree_of_frames(ctx, n=4, branch=[2], candidates=[3, 1], prune_after=[1], keep=[2])
    assert nodes_made(ctx) == [12, 8, 4, 8]
    first, second, *_ = events(ctx, "score")
    chosen, _, kept, *_ = events(ctx, "select")
    values = dict(zip(first.uids, first.values))
    groups = [first.uids[i : i + 3] for i in range(0, 12, 3)]
    assert list(chosen.uids) == [max(group, key=lambda uid: values[uid]) for group in groups]
    assert second.step == 2 and second.preview
    best = sorted(zip(second.values, second.uids), reverse=True)[:2]
    assert [uid for _, uid in best] == list(kept.uids)
    assert len(ctx.candidates) == 8


@pytest.mark.parametrize("seed", range(3))
def test_a_node_is_the_beginning_of_its_clips(seed: int) -> None:
    ctx = context(clips(3), seed=seed)
    state = tree_of_frames(ctx, n=2, branch=[3, 2], candidates=[1], prune="none")
    assert len(state) == 12 and len({row.numpy().tobytes() for row in state.latents}) == 12
    for unit, groups in ((2, 2), (4, 6)):  # frames
        assert len({row[:, :unit].numpy().tobytes() for row in state.latents}) == groups


# Prompts and verifiers of stages


def test_clips_are_generated_for_and_judged_by_the_prompts_of_their_stages() -> None:
    verifier = Bright()
    ctx = context(clips(5), verifier)
    state = tree_of_frames(ctx, n=2, stage_prompts=list(PROMPTS), prune="none", backtrack=False, order="best")
    assert {condition.text for condition in state.conditions} == {PROMPTS[2]}
    asked = list(dict.fromkeys(verifier.asked))
    assert asked == [(PROMPTS[0], 2), *((PROMPTS[1], n) for n in (4, 6, 8)), (WHOLE, 10)]
    plain = context(clips(5))
    other = tree_of_frames(plain, n=2, stage_prompts=[PROMPTS[0]] * 5, prune="none", order="best")
    frames = slice(0, 2)
    assert torch.equal(state.latents[:, :, frames], other.latents[:, :, frames]), "of one scene"
    assert not torch.equal(state.latents[:, :, 2:], other.latents[:, :, 2:])
    assert ctx.ledger.spent == plain.ledger.spent


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_prompts_of_another_number_are_refused(count: int) -> None:
    message = rf"one entry for each of 5 units, or 3: for scene, motion, ending; but got {count}"
    with pytest.raises(ConfigError, match=message):
        tree_of_frames(context(clips(5)), stage_prompts=["a ball"] * count)
    with pytest.raises(ConfigError, match=r"stage_verifiers must have one entry .* but got"):
        tree_of_frames(context(clips(5)), stage_verifiers=["jpeg_incompressibility"] * count)


def test_settings_by_unit() -> None:
    assert by_unit("abc", 5, "x") == ("a", "b", "b", "b", "c") and by_unit("abc", 3, "x") == ("a", "b", "c")
    assert repeated((5, 2), 4) == (5, 2, 2, 2)
    with pytest.raises(ConfigError, match=r"each of 2 units; but got 3"):
        by_unit("abc", 2, "x")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle moving left", ["a red circle", None, None]),
        ("a blue star growing and a green ring standing still", ["a blue star and a green ring", None, None]),
        ("a dog barking loudly and running in the park", ["a dog", None, None]),
        ("two cats are playing, cinematic", ["two cats, cinematic", None, None]),
        ("a king is walking, then he sits down", ["a king", "a king is walking", "he sits down"]),
        (
            "a ball rolls. Then it jumps; finally it rests",
            ["a ball rolls", "a ball rolls, then it jumps", "it rests"],
        ),
        ("a man sits and then rises", ["a man sits", None, None]),  # "rises" alone has no subject
        ("shrinking", ["shrinking", None, None]),
    ],
)
def test_stages_by_rules(prompt: str, expected: list[str | None]) -> None:
    assert stages(prompt, 3) == [text or prompt for text in expected]


def test_stages_of_a_rewriter_are_asked_once() -> None:
    ctx = context(clips(4))
    ctx._judging.prompt = Prompt("a red circle moving left")
    state = tree_of_frames(ctx, n=1, rewriter="stages")
    assert [event.value for event in events(ctx, "stages")] == [["a red circle", *[ctx.prompt.text] * 2]]
    texts = [c["text"] for e in ctx.events if e.kind == "birth" for c in e.defined.values()]
    assert texts == ["a red circle", ctx.prompt.text]
    assert {condition.text for condition in state.conditions} == {ctx.prompt.text}
    with pytest.raises(ConfigError, match="given or come from a rewriter but got both"):
        tree_of_frames(context(), rewriter="stages", stage_prompts=list(PROMPTS))


def test_stages_of_a_language_model() -> None:
    with serving(lambda request: Answer("1. a ball\n2. a ball rolls\n3. a ball rests")) as server:
        spec = f"stage_chat:base_url={server.base_url},model=tiny"
        ctx = context()
        tree_of_frames(ctx, n=1, rewriter=spec)
        assert events(ctx, "stages")[0].value == list(PROMPTS)
        assert ctx.ledger.calls["stage_chat"] == 1 and len(server.requests) == 1
        question = str(server.requests[0]["messages"])
        assert WHOLE in question and "static scene" in question
    with serving(lambda request: Answer("a ball\na ball rolls")) as server:
        spec = f"stage_chat:base_url={server.base_url},model=tiny"
        with pytest.raises(ConfigError, match=r"into 3 stages, scene, motion, ending, but .* gave 2"):
            tree_of_frames(context(), n=1, rewriter=spec)
        assert load_rewriter(spec).name == "stage_chat"


def test_verifiers_of_stages_and_of_candidates() -> None:
    verifier = Bright()
    ctx = context(clips(4), verifier)
    settings = {"candidates": [3, 1], "keep": [1], "prune_after": [0, 1]}
    own = {"stage_verifiers": [f"{OWN}prompted"] * 3, "image_verifier": "last_frame(jpeg_incompressibility)"}
    tree_of_frames(ctx, n=3, **settings, **own)  # type: ignore[arg-type]
    images, first, second = events(ctx, "stage_score")
    assert images.value["verifier"].startswith("last_frame(jpeg") and len(images.uids) == 9
    assert (first.value["verifier"], len(first.uids), first.step) == ("prompted", 3, 1)
    (_, kept, *_) = events(ctx, "select")
    assert kept.uids == (max(zip(first.values, first.uids))[1],), "the darkest, by that verifier"
    assert second.step == 2 and set(verifier.asked) == {(WHOLE, 8)}, "the search's own judges whole clips"
    assert ctx.ledger.calls["prompted"] == 4 and ctx.ledger.calls["bright"] == len(ctx.candidates)
    price = rehearse(ctx, tree_of_frames, {"n": 3, **settings, **own})
    assert price == ctx.ledger.spent


def test_an_image_verifier_given_a_clip_is_refused() -> None:
    message = r"'jpeg.*' scores image but 'toy clips' makes video; .*frame_mean\(NAME\).*last_frame\(NAME\)"
    for settings in (
        {"image_verifier": "jpeg_incompressibility"},
        {"stage_verifiers": ["jpeg_incompressibility"] * 3},
    ):
        ctx = context()
        with pytest.raises(ConfigError, match=message):
            tree_of_frames(ctx, **settings)  # type: ignore[arg-type]
        assert not ctx.events
    with pytest.raises(ConfigError, match=message):
        tts_vision.search(
            clips(), "x", algorithm="tree_of_frames", verifier="jpeg_incompressibility", budget="8x"
        )


# Orders


@pytest.mark.parametrize(
    ("settings", "allowance"), [({}, 6 + 6 + 3 + 2), ({"branch": [2]}, 6 + 12 + 12 + 12), ({"keep": [2]}, 16)]
)
def test_best_first_search_expands_the_best_node_in_as_many_steps(
    settings: dict[str, Any], allowance: int
) -> None:
    ctx, broad = context(clips(4)), context(clips(4))
    state = tree_of_frames(ctx, n=6, candidates=[1], order="best", **settings)
    tree_of_frames(broad, n=6, candidates=[1], **settings)
    assert broad.ledger.spent.nfe == 4 * allowance
    assert len(state) and state.step == ctx.num_steps
    left, each = allowance, settings.get("branch", [1])[0]
    nodes: dict[tuple[int, int], float] = {}
    for event in ctx.events:
        if event.kind == "answer" and event.what == "score" and event.preview:
            nodes |= {(uid, event.step): value for uid, value in zip(event.uids, event.values)}
        elif event.kind == "computed" and event.what == "advance":
            if event.from_step:  # the first child has the name of its parent
                able = [node for node in nodes if each * (4 - node[1]) <= left]
                parent = (event.uids[0], event.from_step)
                assert parent in able and nodes[parent] == max(nodes[node] for node in able)
                del nodes[parent]
            left -= len(event.uids)
    assert left >= 0 and not [node for node in nodes if each * (4 - node[1]) <= left]


@pytest.mark.parametrize("order", ["breadth", "best"])
@pytest.mark.parametrize("times", [1, 2, 4, 9])
def test_budgets(order: str, times: float) -> None:
    for backtrack in (False, True):
        ctx = context(clips(4), times=times)
        state = run(tree_of_frames, ctx, order=order, backtrack=backtrack)
        assert ctx.ledger.spent.nfe <= times * 16 and state.step == ctx.num_steps and ctx.best is not None


# Other samplers


def test_samples_that_are_made_as_a_whole_are_taken_in_steps() -> None:
    tokens, diffusion = TokenSampler(), GaussianMixtureSampler(num_steps=7)
    assert units_of(tokens) == tuple(range(6)) and units_of(diffusion) == (0, 2, 4)
    assert units_of(GaussianMixtureSampler(num_steps=2)) == (0,)
    assert units_of(clips(4)) == (0, 1, 2, 3) and units_of(clips(3, inner_steps=True)) == (0, 4, 8)
    for sampler in (tokens, diffusion):
        ctx = toy_context(sampler, times=8)
        run(tree_of_frames, ctx, branch=[2])
        assert len({event.step for event in events(ctx, "score")}) > 2


def test_needs_forks_that_differ() -> None:
    with pytest.raises(CapabilityError, match="'tree_of_frames' needs a sampler with preview, stochastic"):
        tts_vision.search(
            GaussianMixtureSampler(eta=0.0), "x", algorithm="tree_of_frames", verifier=Bright(), budget="4x"
        )
    assert lookup("algorithm", "tree_of_frames").wants_stochastic


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"branch": [1, 2, 3]}, r"branch must have 1 to 2 entries, .* but got 3"),
        ({"branch": [0]}, "each entry of branch must be at least 1"),
        ({"candidates": []}, r"candidates must have 1 to 3 entries, .* but got 0"),
        ({"keep": [0]}, "each entry of keep must be at least 1"),
        ({"prune_after": [2]}, r"lie between 0 and 1, .* but got \[2\]"),
        ({"prune_after": [1, 0]}, "prune_after must increase"),
        ({"rewriter": "phrasings"}, None),
        ({"rewriter": "nobody"}, "must be one of .*stages"),
    ],
)
def test_rejects(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        tree_of_frames(context(), **settings)
        return
    with pytest.raises(ConfigError, match=message):
        tree_of_frames(context(), **settings)


# Resuming


@pytest.mark.parametrize(
    "settings",
    [
        {
            "n": 3,
            "branch": [2, 1],
            "stage_prompts": list(PROMPTS),
            "image_verifier": "last_frame(jpeg_incompressibility)",
        },
        {"n": 3, "order": "best"},
        {"n": 2, "backtrack": True, "rewriter": "stages"},
    ],
    ids=["stages", "best", "backtrack"],
)
def test_survives_a_kill_after_every_event(settings: dict[str, Any], tmp_path: Path) -> None:
    kill_everywhere(partial(tree_of_frames, **settings), partial(clips, 3), Bright(), tmp_path)


# The released order of events


def released(units: int = 4, verifier: Bright | None = None, **settings: Any) -> SearchContext:
    sampler = clips(units, draws=0.4, branch_noise="shared_root", inner_steps=True)
    ctx = context(sampler, verifier)
    tree_of_frames(ctx, strict_reference=True, **settings)
    return ctx


def test_the_released_code_branches_from_the_noise_of_the_root() -> None:
    verifier = Bright()
    ctx = released(verifier=verifier, n=3, candidates=[2, 2, 1], prune_after=[1])
    roots, *others = [event for event in ctx.events if event.what == "init"]
    assert len(roots.uids) == 3 and not others, "one root each, of which candidates are copies"
    forked = events(ctx, "select")[0]
    assert forked.parents == (0, 0, 1, 1, 2, 2) and forked.step == 0
    # candidates of every unit are asked step by step until they are clear, then once for their potential
    asked = [(event.value, event.step, event.uids) for event in events(ctx, "judge")]
    for first in (0, 4):
        unit = [(q, step, uids) for q, step, uids in asked if first < step <= first + 4]
        assert [step for q, step, _ in unit if q == "clarity"] == list(range(first + 1, first + 5))[
            : len({step for q, step, _ in unit if q == "clarity"})
        ]
        potential = [uid for q, _, uids in unit if q == "potential" for uid in uids]
        assert len(potential) == len(set(potential)), "once"
    assert not [step for _, step, _ in asked if step > 8], "one candidate is not judged"
    price = rehearse(ctx, partial(tree_of_frames, strict_reference=True), {"n": 3, "candidates": [2, 2, 1]})
    assert price is not None and price.nfe >= ctx.ledger.spent.nfe
    assert price.verifier_calls >= ctx.ledger.spent.verifier_calls


def test_the_released_code_keeps_the_candidate_with_the_lowest_p_no() -> None:
    ctx = released(n=4, candidates=[3, 1])
    answered: dict[int, float] = {}
    for event in events(ctx, "judge"):
        if event.value == "potential":
            answered |= {uid: score.value for uid, score in zip(event.uids, event.scores)}
    copies, chosen = events(ctx, "select")[:2]
    groups = [copies.uids[i : i + 3] for i in range(0, 12, 3)]
    no = {uid: 1 - answered[uid] if uid in answered else 1.0 for group in groups for uid in group}
    assert list(chosen.uids) == [min(group, key=lambda uid: no[uid]) for group in groups]


def test_the_released_code_prunes_from_the_median_on_and_judges_by_the_motion() -> None:
    verifier = Bright(levels=40)
    ctx = released(5, verifier, n=5, candidates=[1], stage_prompts=list(PROMPTS), prune_after=[1, 3])
    judged = events(ctx, "stage_score")
    assert [set(event.value) for event in judged] == [{PROMPTS[1]}] * 2, "at every stage"
    values = np.array(judged[0].values)
    kept = next(event for event in events(ctx, "select") if event.step == 8)
    assert list(kept.uids) == [uid for uid, v in zip(judged[0].uids, values) if v >= np.median(values)]
    assert verifier.asked[-1] == (WHOLE, 10)
    conditions = {digest for event in ctx.events if event.kind == "birth" for digest in event.conditions}
    assert not conditions, "clips are generated for the prompt of the user"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "best"}, "but order say otherwise"),
        ({"backtrack": True, "keep": [1]}, "but keep and backtrack say otherwise"),
        ({"prune": "threshold"}, "but prune say otherwise"),
        ({"image_verifier": "last_frame(jpeg_incompressibility)"}, "but image_verifier say otherwise"),
    ],
)
def test_the_released_order_cannot_be_changed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        released(**settings)


def test_the_released_order_needs_noise_of_the_root_and_within_chunks() -> None:
    with pytest.raises(ConfigError, match=r"siblings begin with the noise of their root .* branch_noise"):
        tree_of_frames(context(clips(draws=0.4)), strict_reference=True)
    with pytest.raises(ForkError):
        tree_of_frames(context(clips(branch_noise="shared_root")), strict_reference=True)


def test_the_released_order_survives_kills(tmp_path: Path) -> None:
    make = partial(clips, 3, draws=0.4, branch_noise="shared_root", inner_steps=True)
    algorithm = partial(tree_of_frames, n=2, candidates=[2, 1], strict_reference=True)
    kill_everywhere(algorithm, make, Bright(), tmp_path, most=12)
