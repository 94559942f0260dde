"""The sampler of visual autoregressive models, on a tiny Infinity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_infinity import CONFIG, SCHEDULE, tiny_infinity

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.ledger import Budget, Ledger
from tts_vision.moves import TokenNoise
from tts_vision.pipelines.var.folder import load_pipeline, save_pipeline
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.testing.contracts import SamplerContract
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Cost, Prompt, Rows, State

CONDITION = Condition("two red circles")


def sampler_of(**options: Any) -> ScaleSampler:
    return ScaleSampler(tiny_infinity(), options=SamplerOptions(**options))


def finished(sampler: ScaleSampler, uids: tuple[int, ...], seed: int = 0) -> State:
    return sampler.advance(sampler.init(CONDITION, uids, seed=seed), sampler.num_steps)


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


class TestScaleSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return sampler_of()


class TestWithoutGuidance(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return sampler_of(pipeline_kwargs={"guidance_scale": 1.0, "tau": [1, 1, 0.9, 0.8, 0.7]})


def test_stepwise_equals_whole() -> None:
    sampler = sampler_of()
    state = sampler.init(CONDITION, (0, 1, 2), seed=5)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    whole = tiny_infinity()(CONDITION.text, seed=5, n=3)
    for stepwise, image in zip(sampler.decode(state), whole):
        assert np.array_equal(np.asarray(stepwise), np.asarray(image))
    assert len({np.asarray(image).tobytes() for image in whole}) == 3
    assert torch.equal(tiny_infinity()(CONDITION.text, seed=5, n=3, output_type="tokens"), state.latents)
    with pytest.raises(ConfigError, match="output_type must be 'pil' or 'tokens' but got 'np'"):
        tiny_infinity()(CONDITION.text, output_type="np")


def test_the_prompt_and_the_guidance_matter() -> None:
    state = finished(sampler_of(), (0,))
    other = sampler_of()
    prompted = other.advance(other.init(Condition("a blue star"), (0,), seed=0), other.num_steps)
    guided = finished(sampler_of(pipeline_kwargs={"guidance_scale": 4.0}), (0,))
    negative = finished(sampler_of(pipeline_kwargs={"negative_prompt": "a blue star on the left"}), (0,))
    tokens = [s.latents for s in (state, prompted, guided, negative)]
    assert all(not torch.equal(tokens[0], other) for other in tokens[1:])


def test_the_likeliest_tokens_need_no_noise() -> None:
    sampler = sampler_of(pipeline_kwargs={"top_k": 1})
    first, second = finished(sampler, (3, 4)).latents
    assert torch.equal(first, second)


def test_pruning_changes_nothing() -> None:
    sampler = sampler_of()
    together = finished(sampler, (0, 1, 2, 3))
    state = sampler.advance(sampler.init(CONDITION, (0, 1, 2, 3), seed=0), 2)
    pruned = sampler.advance(state.select([3, 1]), sampler.num_steps - 2)
    assert torch.equal(pruned.latents, together.latents[[3, 1]])
    # the state that was pruned is still whole, although its cache was written to meanwhile
    assert torch.equal(sampler.advance(state, sampler.num_steps - 2).latents, together.latents)


def test_two_ways_on_from_one_state_do_not_mix() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    forked = sampler.advance(replace(state, uids=(8, 9)), 2)
    again = sampler.advance(sampler.advance(state, 1), 1)
    assert not torch.equal(forked.latents, again.latents)
    assert torch.equal(sampler.advance(again, 1).latents, finished(sampler, (0, 1)).latents)


def test_equal_prefixes_share_one_pass() -> None:
    sampler, ledger = sampler_of(), Ledger()
    sampler.bind(ledger)
    state = sampler.init(CONDITION, (0, 1, 2, 3), seed=0)
    one = sampler.cost(CONDITION, 0, 1)
    state = sampler.advance(state)
    assert ledger.spent == one  # nothing differs before the first scale
    assert len(np.unique(state.latents.flatten(1).numpy(), axis=0)) == 4
    ledger.spent = Cost()
    siblings = state.select([0, 0, 0, 1], uids=(0, 10, 11, 1))
    children = sampler.advance(siblings)
    assert ledger.spent == sampler.cost(CONDITION, 1, 1) * 2
    assert len(np.unique(children.latents.flatten(1).numpy(), axis=0)) == 4
    alone = sampler.advance(state.select([0], uids=(11,)))
    assert torch.equal(children.latents[2:3], alone.latents)


def test_costs_differ_by_scale() -> None:
    sampler = sampler_of()
    costs = [sampler.cost(CONDITION, k, 1) for k in range(sampler.num_steps)]
    assert [cost.nfe for cost in costs] == [2] * 5
    assert [cost.tokens for cost in costs] == [2 * n for n in SCHEDULE.lengths]
    assert costs[-1].macs > 10 * costs[0].macs
    assert sampler.cost(CONDITION, 0, 5) == sum(costs, Cost())


def test_the_cache_is_shared_by_forks_and_holds_no_last_scale() -> None:
    sampler = sampler_of()
    state = finished(sampler, (0, 1, 2))
    places = state.carry["cache"]
    assert isinstance(places, Rows)
    assert [place.tokens for place in places] == [SCHEDULE.starts[-2]] * 3
    assert len({id(place.pieces[0]) for place in places}) == 1, "before the first scale all are equal"
    assert len({id(place.pieces[1]) for place in places}) == 3
    back = sampler.renoise(state.select([0, 0], uids=(5, 6)), 3)
    forks = sampler.advance(back).carry["cache"]
    assert all(fork.pieces[k] is places[0].pieces[k] for fork in forks for k in range(3))
    shape = places[0].shape
    assert shape.bytes_per_row == 2 * CONFIG.depth * 2 * SCHEDULE.starts[-2] * CONFIG.width * 4
    stored = sum(t.numel() * 4 for piece in places[0].pieces for t in (*piece.keys, *piece.values))
    assert stored == shape.bytes_per_row


def test_micro_batches_change_nothing() -> None:
    contexts = [
        SearchContext(sampler_of(), TargetReward(), Prompt(CONDITION.text), seed=1, max_batch=size)
        for size in (None, 2, 1)
    ]
    ends = [ctx.finish(ctx.advance(ctx.init(5), 2)) for ctx in contexts]
    assert torch.equal(ends[0].latents, ends[1].latents)
    assert torch.equal(ends[0].latents, ends[2].latents)


def test_going_back_keeps_the_first_scales() -> None:
    sampler, ledger = sampler_of(), Ledger()
    end = finished(sampler, (0,))
    back = sampler.renoise(end.select([0, 0], uids=(5, 6)), 3)
    sampler.bind(ledger)
    again = sampler.advance(back, 2)
    kept = SCHEDULE.starts[3]
    assert torch.equal(again.latents[:, :kept], end.latents[:, :kept].expand(2, -1, -1))
    assert len(np.unique(torch.cat((end.latents, again.latents)).flatten(1).numpy(), axis=0)) == 3
    # the kept scales are in the cache: only the new ones are computed
    assert ledger.spent.tokens == 2 * (SCHEDULE.lengths[3] + 2 * SCHEDULE.lengths[4])


def test_previews_at_their_own_size() -> None:
    state = sampler_of().advance(sampler_of().init(CONDITION, (0, 1), seed=0), 3)
    assert {p.size for p in sampler_of().preview(state)} == {(32, 32)}
    assert {p.size for p in sampler_of(preview_size=16).preview(state)} == {(16, 16)}
    assert {p.size for p in sampler_of(preview_size=512).preview(state)} == {(32, 32)}
    end = finished(sampler_of(), (0,))
    assert {p.size for p in sampler_of(preview_size=16).decode(end)} == {(32, 32)}
    with pytest.raises(CapabilityError, match="A preview needs at least one scale"):
        sampler_of().preview(sampler_of().init(CONDITION, (0,), seed=0))


def test_half_precision() -> None:
    import copy

    pipe = tiny_infinity()
    half = copy.deepcopy(pipe)
    for module in (half.transformer, half.vae, half.text_encoder):
        module.to(torch.bfloat16)
    sampler = ScaleSampler(half)
    state = finished(sampler, (0, 1))
    places = state.carry["cache"]
    assert isinstance(places, Rows) and places[0].pieces[0].keys[0].dtype == torch.bfloat16
    assert len({np.asarray(image).tobytes() for image in sampler.decode(state)}) == 2
    agree = (state.latents == finished(sampler_of(), (0, 1)).latents).float().mean()
    assert agree > 0.8


def test_a_folder_holds_the_pipeline(tmp_path: Path) -> None:
    save_pipeline(tiny_infinity(), tmp_path)
    again = load_pipeline(tmp_path)
    assert again.schedule == SCHEDULE and again.name == "tiny-infinity"
    for ours, theirs in zip(tiny_infinity()("a star", n=2), again("a star", n=2)):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("algorithm", ["best_of_n", "fk_steering", "search_over_paths"])
def test_algorithms_that_know_nothing_of_scales(algorithm: str, tmp_path: Path) -> None:
    pipe = tiny_infinity()
    result = tts_vision.search(
        pipe,
        CONDITION.text,
        algorithm=algorithm,
        verifier=brightness,
        budget="6x",
        seed=0,
        output=tmp_path / "a",
    )
    plain = brightness([pipe(CONDITION.text, seed=0)[0]], [])[0]
    assert result.best.score.value > plain
    assert result.spent.macs <= 6 * ScaleSampler(pipe).cost(CONDITION, 0, 5).macs
    tts_vision.search(
        pipe,
        CONDITION.text,
        algorithm=algorithm,
        verifier=brightness,
        budget="6x",
        seed=0,
        output=tmp_path / "b",
    )
    found = [json.loads((tmp_path / x / "result.json").read_text()) for x in "ab"]
    assert found[0]["best"]["uid"] == found[1]["best"]["uid"]
    assert found[0]["spent"] == found[1]["spent"]


def test_gaussian_noise_is_refused() -> None:
    with pytest.raises(CapabilityError, match="needs a sampler with noise but 'tiny-infinity' lacks noise"):
        tts_vision.search(tiny_infinity(), CONDITION.text, algorithm="zero_order", verifier=brightness)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "must be one of aspect_ratio.*but got 'guidance'; did you mean 'guidance_scale'"),
        ({"guidance_scale": [1.0, 2.0]}, "one for each of 5 scales but got 2"),
        ({"tau": 0.0}, "tau must be above 0 but got 0"),
        ({"top_p": 1.5}, "top_p must lie in"),
        ({"aspect_ratio": 1.0}, "draws one size of image"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        finished(sampler_of(pipeline_kwargs=settings), (0,))


def test_ratios_and_sizes_that_no_template_has() -> None:
    pipe = tiny_infinity(schedule=None)
    with pytest.raises(ConfigError, match=r"must be near one of 0.333, .*, 3 but got 4; change it"):
        pipe.configured({"aspect_ratio": 4})
    with pytest.raises(ConfigError, match=r"size must be one of 0.06M"):
        pipe.configured({"size": "2M"})
    for wrong in ("wide", "0:1", "1:2:3", 0.0, -1, [1]):
        with pytest.raises(ConfigError, match="written width:height"):
            pipe.configured({"aspect_ratio": wrong})


@pytest.mark.parametrize("ratio", ["16:9", 0.5625, 0.571, 9 / 16, "0.58:0.33"])
def test_the_nearest_template_is_taken(ratio: Any) -> None:
    pipe = tiny_infinity(schedule=None)
    assert pipe.configured({"aspect_ratio": ratio, "size": "0.06M"}).schedule.final == (12, 21)


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(
        ConfigError, match="A prompt must have at most 16 tokens for tiny-infinity but has 21"
    ):
        sampler_of().init(Condition("red " * 20), (0,), seed=0)


def test_a_budget_in_tokens() -> None:
    sampler = sampler_of()
    cost = sampler.cost(CONDITION, 0, 5)
    assert Budget.parse("3x").resolve(cost).macs == 3 * cost.macs
    result = tts_vision.search(
        tiny_infinity(), CONDITION.text, verifier=brightness, budget=f"tokens={4 * cost.tokens}"
    )
    assert len(result.population) == 4 and result.spent.tokens <= 4 * cost.tokens


# Conditions


def test_a_batch_of_different_texts_equals_the_texts_alone() -> None:
    sampler, ledger, encoded = sampler_of(), Ledger(), []
    encode = type(sampler._model).encode
    texts = ["two red circles", "a blue star", "two red circles", "three green squares on the left"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(sampler._model), "encode", lambda self, c: encoded.append(c.text) or encode(self, c)
        )
        parts = [sampler.init(Condition(text), (uid,), seed=0) for uid, text in enumerate(texts)]
        sampler.bind(ledger)
        state = State.cat(parts)
        assert sampler.price(state, 1) == sum((sampler.cost(Condition(t), 0, 1) for t in set(texts)), Cost())
        together = sampler.advance(state)
        assert ledger.spent == sampler.price(state, 1)  # the two rows of one text share their forward
        together = sampler.advance(together.select([3, 1, 0, 2]), sampler.num_steps - 1).select([2, 1, 3, 0])
    assert encoded == list(dict.fromkeys(texts))
    assert [condition.text for condition in together.conditions] == texts
    images = sampler.decode(together)
    for row, part in enumerate(parts):
        alone = sampler_of().advance(part, sampler.num_steps)
        assert torch.equal(alone.latents, together.latents[row : row + 1])
        assert np.array_equal(np.asarray(images[row]), np.asarray(sampler.decode(alone)[0]))


def test_a_new_condition_comes_before_the_first_scale() -> None:
    sampler, star = sampler_of(), Condition("a blue star")
    start = replace(sampler.init(CONDITION, (0, 1), seed=0), conditions=(star, CONDITION))
    end = sampler.advance(sampler.recondition(start), sampler.num_steps)
    alone = sampler.advance(sampler.init(star, (0,), seed=0), sampler.num_steps)
    assert torch.equal(end.latents[:1], alone.latents)
    later = sampler.advance(start)
    with pytest.raises(CapabilityError, match=r"before the first scale.*but the state is at scale 1"):
        sampler.recondition(later)
    too_long = replace(start, conditions=(Condition("red " * 20),) * 2)
    with pytest.raises(ConfigError, match="at most 16 tokens"):
        sampler.recondition(too_long)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition("a star", negative_text="blurry"), "must have no negative text but got 'blurry'"),
        (Condition("a star", images=Image.new("RGB", (8, 8))), "no images or embeddings but got image"),
        (Condition("a star", embeddings={"prompt_embeds": torch.zeros(1, 2)}), "but got prompt_embeds"),
        (Condition("a star", overrides={"tau": 2.0}), "must be among none but got tau; set them in"),
    ],
)
def test_conditions_that_the_model_cannot_take(condition: Condition, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of().init(condition, (0,), seed=0)


def test_a_move_draws_the_last_scale_again() -> None:
    sampler = sampler_of()
    assert [sampler.move(step, 0.5) for step in range(sampler.num_steps + 1)] == [
        None,
        *[TokenNoise(0.25)] * (sampler.num_steps - 1),
        None,
    ]
