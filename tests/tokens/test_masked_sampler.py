"""The sampler of masked-token models, on a tiny Show-o."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_showo import DEFAULTS, tiny_showo
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError, ForkError
from tts_vision.ledger import Ledger
from tts_vision.moves import Adopt, Blend, Neighbour, describe, from_description
from tts_vision.pipelines.masked_sampler import UNMASKED, MaskedSampler, RemaskStep, RemaskTokens
from tts_vision.pipelines.tokens import network_sampler
from tts_vision.pipelines.tokens.masked import Decoding
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.replays import recreate
from tts_vision.testing.contracts import SamplerContract
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Family
from tts_vision.types import Cost, Invalid, Prompt, State

CONDITION = Condition("two red circles")
OTHER = Condition("a blue star")
MASK, TOKENS, STEPS = 64, 16, DEFAULTS["num_inference_steps"]
MASKS = Decoding(num_inference_steps=STEPS).masks(TOKENS)


def sampler_of(**options: Any) -> MaskedSampler:
    return MaskedSampler(tiny_showo(), options=SamplerOptions(**options))


def at(sampler: MaskedSampler, step: int, uids: Any = (0, 1), condition: Condition = CONDITION) -> State:
    state = sampler.init(condition, tuple(uids), seed=0)
    return sampler.advance(state, step) if step else state


def masked(state: State) -> list[int]:
    return (state.latents == MASK).sum(1).tolist()


class TestMaskedSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return sampler_of()


class TestNoiseOfAllSteps(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return sampler_of(stochastic=False, pipeline_kwargs={"guidance_scale": 0})


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize(
    "call", [{}, {"guidance_scale": 0}, {"num_inference_steps": 8, "schedule": "pow2", "temperature": 0.5}]
)
def test_stepwise_equals_whole(stochastic: bool, call: dict[str, Any]) -> None:
    sampler = sampler_of(stochastic=stochastic, pipeline_kwargs=call)
    state = sampler.init(CONDITION, (0, 1, 2), seed=5)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    codes = tiny_showo()(CONDITION.text, seed=5, n=3, output_type="tokens", **call)
    images = tiny_showo()(CONDITION.text, seed=5, n=3, **call)
    assert isinstance(codes, Tensor) and torch.equal(codes, state.latents)
    plain = sampler.plain(CONDITION, (0, 1, 2), seed=5)
    for ours, whole, own in zip(sampler.decode(state), images, plain):
        assert np.array_equal(np.asarray(ours), np.asarray(whole))
        assert np.array_equal(np.asarray(own), np.asarray(whole))
    assert len({tuple(row.tolist()) for row in codes}) == 3
    with pytest.raises(ConfigError, match="output_type must be 'pil' or 'tokens' but got 'np'"):
        tiny_showo()(CONDITION.text, output_type="np")  # type: ignore[arg-type]


def test_tokens_are_unmasked_on_schedule_and_stay() -> None:
    sampler = sampler_of()
    state = at(sampler, 0, range(4))
    assert masked(state) == [TOKENS] * 4
    for step in range(1, STEPS + 1):
        before, state = state.latents, sampler.advance(state)
        assert masked(state) == [MASKS[step]] * 4
        assert torch.equal(state.latents[before != MASK], before[before != MASK])
        fresh = state.carry[UNMASKED]
        assert isinstance(fresh, Tensor)
        assert torch.equal(fresh, (before == MASK) & (state.latents != MASK))
    assert int(state.latents.max()) < MASK


def test_the_prompt_the_guidance_and_the_temperature_matter() -> None:
    calls: list[tuple[Condition, dict[str, Any]]] = [
        (CONDITION, {}),
        (OTHER, {}),
        (CONDITION, {"guidance_scale": 5.0}),
        (CONDITION, {"temperature": 0.0}),
        (CONDITION, {"negative_prompt": "a blue star"}),
    ]
    drawn = [at(sampler_of(pipeline_kwargs=call), STEPS, (0,), c).latents for c, call in calls]
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_a_batch_may_shrink_and_grow() -> None:
    sampler = sampler_of()
    together = at(sampler, STEPS, range(4)).latents
    state = at(sampler, 2, range(4))
    pruned = sampler.advance(state.select([3, 1]), STEPS - 2)
    assert torch.equal(pruned.latents, together[[3, 1]])
    late = at(sampler, 2, (7,))
    grown = sampler.advance(State.cat([state, late]), STEPS - 2)
    assert torch.equal(grown.latents[:4], together)
    assert torch.equal(grown.latents[4:], at(sampler, STEPS, (7,)).latents)
    # the state that was pruned is as it was
    assert torch.equal(sampler.advance(state, STEPS - 2).latents, together)


def test_prices() -> None:
    sampler, ledger = sampler_of(), Ledger()
    sampler.bind(ledger)
    one = sampler.cost(CONDITION, 0, 1)
    macs = 2 * sampler._network.macs(sampler.words(CONDITION))
    assert one == Cost(nfe=2, tokens=2 * TOKENS, macs=macs)
    assert sampler.cost(CONDITION, 2, 3) == one * 3
    state = sampler.init(CONDITION, (0, 1, 2, 3), seed=0)
    assert ledger.spent == Cost()  # the prompt, whose keys and values serve all steps, is free as a text is
    state = sampler.advance(state)
    assert ledger.spent == one  # all begin with the same masks
    siblings = state.select([0, 0, 0, 1], uids=(0, 10, 11, 1))
    assert sampler.price(siblings, 2) == one * (2 + 4)
    ledger.spent = Cost()
    children = sampler.advance(siblings)
    assert ledger.spent == one * 2
    assert len({tuple(row.tolist()) for row in children.latents}) == 4
    assert torch.equal(children.latents[2:3], sampler.advance(state.select([0], uids=(11,))).latents)
    assert sampler_of(pipeline_kwargs={"guidance_scale": 0}).cost(CONDITION, 0, 1).nfe == 1


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, encoded = sampler_of(), []
    network = sampler._network
    original = type(network).encode
    monkeypatch.setattr(
        type(network),
        "encode",
        lambda self, condition: encoded.append(condition) or original(self, condition),
    )
    at(sampler, STEPS, range(3))
    at(sampler, STEPS, range(3), OTHER)
    at(sampler, 2, (9,))
    assert encoded == [CONDITION, OTHER]


def test_the_oldest_of_many_prompts_is_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_sampler, "_KEPT", 2)
    sampler = sampler_of()
    conditions = [CONDITION, OTHER, Condition("a green ring")]
    state = State.cat([sampler.init(c, (i,), seed=0) for i, c in enumerate(conditions)])
    assert list(sampler._encoded) == conditions[1:]
    end = sampler.advance(state, STEPS)
    for i, condition in enumerate(conditions):
        assert torch.equal(end.latents[i : i + 1], at(sampler_of(), STEPS, (i,), condition).latents)
    assert len(sampler._encoded) == 2


def test_previews_show_the_guess_of_the_last_step() -> None:
    sampler, ledger = sampler_of(), Ledger()
    state = at(sampler, 2)
    sampler.bind(ledger)
    guess = state.carry["preview"]
    assert isinstance(guess, Tensor) and int(guess.max()) < MASK
    assert torch.equal(guess[state.latents != MASK], state.latents[state.latents != MASK])
    for shown, own in zip(sampler.preview(state), sampler.decoded(guess)):
        assert np.array_equal(np.asarray(shown), np.asarray(own))
    assert ledger.spent.nfe == 0 and sampler.preview_cost(CONDITION, 2) == Cost()
    with pytest.raises(CapabilityError, match="A preview needs a state that carries 'preview'"):
        sampler.preview(at(sampler, 0))


def test_previews_may_complete_the_image() -> None:
    sampler, ledger = sampler_of(preview="complete"), Ledger()
    state = at(sampler, 2, (0, 1))
    sampler.bind(ledger)
    shown = sampler.preview(State.cat([state, at(sampler, 2, (5,), OTHER)]))
    price = sampler.preview_cost(CONDITION, 2)
    assert price == sampler.cost(CONDITION, 2, STEPS - 2)
    ledger.spent = Cost()
    sampler.preview(state)
    assert ledger.spent == price * 2
    # the same by hand: no noise in what is drawn and what is kept
    network, codes = sampler._network, state.latents
    for step in range(2, STEPS):
        logits = network.logits(network.encode(CONDITION), codes)
        guess = torch.where(codes == MASK, logits.argmax(-1), codes)
        sure = torch.where(codes == MASK, logits.softmax(-1).amax(-1), 2.0)
        again = sure.argsort(1)[:, : MASKS[step + 1]]
        codes = guess.scatter(1, again, MASK)
    for ours, by_hand in zip(shown, sampler.decoded(codes)):
        assert np.array_equal(np.asarray(ours), np.asarray(by_hand))
    assert sampler.preview_cost(CONDITION, STEPS) == Cost()
    with pytest.raises(ConfigError, match="must be 'decode' or 'complete' but got 'expected'"):
        sampler_of(preview="expected")
    with pytest.raises(
        ConfigError, match="'rollout:2' is for diffusion and flow models but tiny-showo draws"
    ):
        sampler_of(preview="rollout:2")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_last_steps_tokens_is_masked_again(share: float) -> None:
    sampler = sampler_of()
    parents = at(sampler, 3, range(60))
    children = sampler.apply(RemaskStep(share), parents.select(range(60), uids=range(100, 160)))
    assert children.step == 2
    fresh = parents.carry[UNMASKED]
    assert isinstance(fresh, Tensor)
    again = (children.latents == MASK) & (parents.latents != MASK)
    assert not (again & ~fresh).any()
    assert torch.equal(children.latents[~again], parents.latents[~again])
    assert float(again.sum() / fresh.sum()) == pytest.approx(share, abs=0.1)
    ahead = sampler.advance(children)
    assert max(masked(ahead)) <= MASKS[3]
    assert share == 0 or not torch.equal(ahead.latents, parents.latents)
    with pytest.raises(CapabilityError, match="Masking tokens again needs a state that carries 'unmasked'"):
        sampler.apply(RemaskStep(0.5), sampler.renoise(parents, 2))


def test_a_step_that_is_drawn_afresh_follows_the_models_probabilities() -> None:
    sampler = sampler_of()
    plain = at(sampler, STEPS, range(300)).latents
    parents = at(sampler, 3, range(1000, 1300))
    children = sampler.apply(RemaskStep(1.0), parents.select(range(300), uids=range(2000, 2300)))
    bred = sampler.advance(children, STEPS - 2).latents
    shares = [codes.flatten().bincount(minlength=MASK) / codes.numel() for codes in (plain, bred)]
    assert not torch.equal(plain, bred) and float((shares[0] - shares[1]).abs().max()) < 0.03


def test_going_back_masks_as_many_tokens_as_an_earlier_step_has() -> None:
    sampler = sampler_of()
    for state in (at(sampler, STEPS, range(8)), at(sampler, 3, range(8))):
        for step in range(state.step):
            back = sampler.renoise(state.select(range(8), uids=range(50, 58)), step)
            assert back.step == step and masked(back) == [MASKS[step]] * 8
            known = back.latents != MASK
            assert torch.equal(back.latents[known], state.latents[known])
            assert masked(sampler.advance(back)) == [MASKS[step + 1]] * 8
            if step:
                assert len({tuple(row) for row in (back.latents == MASK).tolist()}) > 1


REGION = (0, 1, 4, 5)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("to_step", [1, 3])
def test_chosen_tokens_alone_are_drawn_again(stochastic: bool, to_step: int) -> None:
    sampler = sampler_of(stochastic=stochastic)
    parents = at(sampler, STEPS, (0, 1))
    move = sampler.remasking(REGION[::-1], to_step)
    assert from_description(json.loads(json.dumps(describe(move)))) == move == RemaskTokens(REGION, to_step)
    children = sampler.apply(move, parents.select([0, 0, 0, 1], uids=(10, 11, 12, 13)))
    assert children.step == to_step and masked(children) == [4] * 4
    ledger = Ledger()
    sampler.bind(ledger)
    left = [4]
    while children.step < STEPS:
        children = sampler.advance(children)
        left.append(masked(children)[0])
    assert left[-1] == 0 and sorted(left, reverse=True) == left
    others = [i for i in range(TOKENS) if i not in REGION]
    assert torch.equal(children.latents[:, others], parents.latents[[0, 0, 0, 1]][:, others])
    assert len({tuple(row.tolist()) for row in children.latents[:3, list(REGION)]}) > 1
    assert ledger.spent.nfe <= 4 * 2 * (STEPS - to_step)
    # a child alone is the same child
    alone = sampler.apply(move, parents.select([0], uids=(11,)))
    assert torch.equal(sampler.advance(alone, STEPS - to_step).latents, children.latents[1:2])


def test_each_row_may_have_a_mask_of_its_own() -> None:
    sampler = sampler_of()
    parents = at(sampler, STEPS, (0, 1))
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[0, :2], mask[1, 8:14] = True, True
    children = sampler.remask(parents.select([0, 1], uids=(10, 11)), mask, 2)
    assert torch.equal(children.latents == MASK, mask)
    end = sampler.advance(children, STEPS - 2).latents
    assert torch.equal(end[~mask], parents.latents[~mask])
    by_move = sampler.apply(RemaskTokens(tuple(range(8, 14)), 2), parents.select([1], uids=(11,)))
    assert torch.equal(sampler.advance(by_move, STEPS - 2).latents, end[1:])


def test_tokens_that_cannot_be_drawn_again() -> None:
    sampler = sampler_of()
    parents = at(sampler, STEPS)
    with pytest.raises(ConfigError, match="At least one token must be masked but got none"):
        RemaskTokens((), 2)
    for to_step in (0, STEPS):
        with pytest.raises(ConfigError, match=f"at least 1, but got {to_step} for particles at step {STEPS}"):
            sampler.apply(RemaskTokens((1,), to_step), parents)
    with pytest.raises(ConfigError, match="Tokens are numbered from 0 to 15 but got 3 to 16"):
        sampler.apply(RemaskTokens((16, 3), 2), parents)
    with pytest.raises(ConfigError, match=r"share must be in \[0, 1\] but got 2"):
        RemaskStep(2.0)
    with pytest.raises(ConfigError, match="needs one step done but got 0"):
        sampler.apply(RemaskStep(0.5), at(sampler, 0))
    toy = GaussianMixtureSampler(num_steps=3)
    state = toy.advance(toy.init(CONDITION, (0,), seed=0), 2)
    with pytest.raises(CapabilityError, match="masks tokens of a masked-token model but 'gaussian"):
        toy.apply(RemaskTokens((0,), 1), state)


def test_regenerated_children_are_made_again_from_their_record() -> None:
    ctx = SearchContext(sampler_of(), TargetReward(), Prompt(CONDITION.text), seed=4, max_batch=1)
    parents = ctx.finish(ctx.init(2))
    ctx.score(parents)
    children = ctx.mutate(parents, ctx.sampler.remasking(REGION, 2), [1, 1, 0])  # type: ignore[arg-type]
    children = ctx.finish(ctx.mutate(ctx.advance(children, 2), RemaskStep(0.5)))
    ctx.score(children)
    result = {c.uid: c for c in ctx.candidates.values()}
    assert len(result) == 5
    family = Family()
    for event in ctx.events:
        family.add(event)
    again = SearchContext(sampler_of(), TargetReward(), Prompt(CONDITION.text), seed=4)
    for uid, candidate in result.items():
        media = recreate(again, family.lineage(uid), STEPS, lambda name: None, {})  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(media), np.asarray(candidate.load())), uid


@pytest.mark.parametrize("stochastic", [True, False])
def test_an_image_of_the_user_is_where_a_search_may_start(stochastic: bool) -> None:
    sampler = sampler_of(stochastic=stochastic)
    y, x = np.mgrid[0:64, 0:64]
    photo = Image.fromarray(np.stack([4 * x, 4 * y, 0 * x + 90], -1).astype(np.uint8))
    ctx = SearchContext(sampler, TargetReward(), Prompt(CONDITION.text), seed=3)
    begin = ctx.init(1, Condition(CONDITION.text, images={ORIGINAL: photo}))
    adopted = ctx.mutate(begin, Adopt(ctx.num_steps))
    (shown,) = sampler.decode(adopted)
    assert isinstance(shown, Image.Image) and shown.tobytes() == photo.tobytes()
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 127.5 - 1
    codes = tiny_showo().image_tokenizer.encode(pixels)
    assert torch.equal(adopted.latents, codes) and ctx.ledger.spent.nfe == 0
    variations = ctx.renoise(adopted, 2, [0, 0, 0])
    assert masked(variations) == [MASKS[2]] * 3
    known = variations.latents != MASK
    assert torch.equal(variations.latents[known], codes.expand(3, -1)[known])
    ends = ctx.finish(variations)
    assert len({tuple(row.tolist()) for row in ends.latents}) == 3
    for own, image in zip(sampler.decode(ends), sampler.decoded(ends.latents)):
        assert np.array_equal(np.asarray(own), np.asarray(image))
    wide = Image.new("RGB", (200, 100), "red")
    begin = ctx.init(1, Condition("x", images={ORIGINAL: wide}))
    assert sampler.decode(ctx.mutate(begin, Adopt(ctx.num_steps)))[0].size == (64, 64)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"from a condition that names 'original' but it has images \[\]"):
        ctx.mutate(ctx.init(1), Adopt(ctx.num_steps))


def test_with_its_noise_at_the_start_a_trajectory_is_the_same() -> None:
    stochastic, deterministic = sampler_of(), sampler_of(stochastic=False)
    state = deterministic.init(CONDITION, (0, 3), seed=2)
    assert state.latents.shape == (2, STEPS, 2, TOKENS)
    assert float(state.latents.mean()) == pytest.approx(0, abs=0.2)
    assert float(state.latents.std()) == pytest.approx(1, abs=0.1)
    end = deterministic.advance(state, STEPS)
    other = stochastic.advance(stochastic.init(CONDITION, (0, 3), seed=2), STEPS)
    assert torch.equal(end.latents, other.latents)
    assert {"noise"} == deterministic.capabilities - stochastic.capabilities
    assert {"stochastic"} == stochastic.capabilities - deterministic.capabilities
    # equal noise, equal sample; near noise, near sample
    twin = deterministic.advance(state.select([0], uids=(77,)), STEPS)
    assert torch.equal(twin.latents, end.latents[:1])
    with pytest.raises(ForkError, match="must be able to differ"):
        deterministic.requires_fork(0)

    def agreeing(tau: float) -> float:
        parents = deterministic.init(CONDITION, range(40), seed=2)
        near = deterministic.apply(Neighbour(tau), parents.select(range(40), uids=range(100, 140)))
        ends = [deterministic.advance(x, STEPS).latents for x in (parents, near)]
        return float((ends[0] == ends[1]).float().mean())

    assert agreeing(0.9999) > agreeing(0.95) > agreeing(0.0)
    assert deterministic.move(0, 0.5) == Blend(0.5) and deterministic.move(1, 0.5) is None
    assert stochastic.move(0, 0.5) is None and stochastic.move(1, 0.5) == RemaskStep(0.25)
    assert stochastic.move(STEPS, 0.5) is None


def test_all_particles_share_the_first_evaluation_whatever_their_noise() -> None:
    sampler, ledger = sampler_of(stochastic=False), Ledger()
    sampler.bind(ledger)
    state = sampler.init(CONDITION, range(5), seed=0)
    assert sampler.price(state, 1) == sampler.cost(CONDITION, 0, 1)
    sampler.advance(state)
    assert ledger.spent == sampler.cost(CONDITION, 0, 1)


@pytest.mark.parametrize("stochastic", [True, False])
def test_another_prompt_may_come_at_any_step(stochastic: bool) -> None:
    sampler = sampler_of(stochastic=stochastic)
    ctx = SearchContext(sampler, TargetReward(), Prompt(CONDITION.text), seed=0)
    begun = ctx.init(2)
    other = ctx.finish(ctx.recondition(begun, OTHER.text))
    fresh = sampler.advance(sampler.init(OTHER, begun.uids, seed=0), STEPS)
    same_noise = torch.equal(other.latents, fresh.latents)
    assert same_noise is not stochastic
    half = ctx.advance(begun, 2)
    changed = ctx.recondition(half, OTHER.text)
    assert torch.equal(changed.latents, half.latents) and "preview" not in changed.carry
    assert not torch.equal(ctx.finish(changed).latents, ctx.finish(half).latents)
    with pytest.raises(ConfigError, match="must have at most 15 tokens"):
        ctx.recondition(half, "red " * 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"guidance": 2}, "A setting of tiny-showo must be one of .* but got 'guidance'; did you mean"),
        ({"guidance_scale": -1}, "must be a number of at least 0, where 0 is none, but got -1"),
        ({"schedule": "cosinus"}, "schedule must be cosine, linear, sigmoid"),
        ({"temperature": (1, 0)}, "A temperature that compounds is one number"),
    ],
)
def test_settings_that_cannot_be(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(pipeline_kwargs=call)


def test_conditions_that_say_more_than_a_text_are_refused() -> None:
    sampler = sampler_of()
    image = Image.new("RGB", (8, 8))
    for condition, message in [
        (Condition("x", negative_text="y"), "must have no negative text but got 'y'"),
        (Condition("x", images={"image": image}), "must have no images or embeddings but got image"),
        (Condition("x", overrides={"guidance_scale": 2}), "must be among none but got guidance_scale"),
        (Condition("red " * 16), "must have at most 15 tokens"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sampler.init(condition, (0,), seed=0)


def test_metadata_says_how_it_was_made() -> None:
    call = {"num_inference_steps": 7, "negative_prompt": "red", "temperature": 0.5}
    facts = sampler_of(pipeline_kwargs=call).facts(CONDITION)
    assert json.loads(json.dumps(facts)) == {
        "steps": 7,
        "guidance_scale": 1.0,
        "negative_prompt": "red",
        "temperature": 0.5,
        "annealing": "compound",
        "schedule": "cosine",
        "device": "cpu",
        "pipeline_kwargs": call,
    }


def test_pixels_that_are_no_numbers_are_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of()
    state = at(sampler, STEPS)
    decode = partial(type(tiny_showo().image_tokenizer).decode, tiny_showo().image_tokenizer)

    def broken(codes: Tensor) -> Tensor:
        pixels = decode(codes).clone()
        pixels[1, 0, 0, 0] = torch.nan
        return pixels

    monkeypatch.setattr(tiny_showo().image_tokenizer, "decode", broken)
    first, second = sampler.decode(state)
    assert isinstance(first, Image.Image) and isinstance(second, Invalid)


def test_it_drives_masked_models_alone() -> None:
    assert MaskedSampler.accepts(tiny_showo()) and not ScaleSampler.accepts(tiny_showo())
    assert not MaskedSampler.accepts(object())
