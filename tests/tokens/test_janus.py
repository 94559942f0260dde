"""The sampler of Janus, on a tiny Janus of transformers with random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_janus import tiny_janus
from torch import Tensor

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.ledger import Ledger
from tts_vision.pipelines.janus_sampler import JanusSampler, RowNoise
from tts_vision.pipelines.tokens.janus import JanusNetwork, JanusPipeline
from tts_vision.registry import lookup
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.testing.toys import TargetReward
from tts_vision.tokens import draw
from tts_vision.types import Cost, Prompt, Rows, State
from tts_vision.verifier import as_verifier

CONDITION = Condition("two red circles")
KILLED = {"evosearch": {"particles": 6, "evolution_schedule": [1, 3]}, "beam_search": {"width": 2}}
ROWS = WIDTH = 4


def sampler_of(preview: Any = "decode", **call: Any) -> JanusSampler:
    return JanusSampler(tiny_janus(), options=SamplerOptions(pipeline_kwargs=call, preview=preview))


def finished(sampler: JanusSampler, uids: tuple[int, ...], seed: int = 0) -> State:
    return sampler.advance(sampler.init(CONDITION, uids, seed=seed), sampler.num_steps)


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def inputs_of(text: str) -> Any:
    """Those of the model's documentation."""
    processor = tiny_janus().processor
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=prompt, generation_mode="image", return_tensors="pt")


def generated(monkeypatch: pytest.MonkeyPatch, n: int, seed: int, **settings: Any) -> Tensor:
    """The tokens of transformers' own call, whose draws are ours."""
    numbers = [row_uniform(seed, "step", range(n), row, torch.empty(n, WIDTH)) for row in range(ROWS)]
    columns = iter(torch.cat(numbers, 1).unbind(1))

    def multinomial(probability: Tensor, num_samples: int) -> Tensor:
        return draw(probability, next(columns)).unsqueeze(1)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    inputs = inputs_of(CONDITION.text)
    tokens: Tensor = tiny_janus().model.generate(
        **inputs, generation_mode="image", num_return_sequences=n, **{"do_sample": True, **settings}
    )
    monkeypatch.undo()
    return tokens


class TestJanus(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of()


class TestWithoutGuidance(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of("complete", guidance_scale=1.0, temperature=0.9, top_k=12)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7}, {"top_k": 5, "top_p": 0.9}, {"guidance_scale": 2.0}]
)
def test_equals_generate(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    sampler = sampler_of(**settings)
    state = sampler.init(CONDITION, (0, 1, 2, 3), seed=5)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    theirs = generated(monkeypatch, 4, 5, **settings)
    assert torch.equal(state.latents, theirs)
    assert len(np.unique(theirs.numpy(), axis=0)) == 4
    assert torch.equal(tiny_janus().configured(settings).samples(CONDITION, 5, range(4)), theirs)
    pixels = tiny_janus().model.decode_image_tokens(theirs).permute(0, 3, 1, 2).clamp(-1, 1)
    assert torch.equal(sampler._network.pixels(state.latents), pixels)


def test_the_likeliest_tokens_equal_greedy_generate() -> None:
    sampler = sampler_of(top_k=1)
    theirs = tiny_janus().model.generate(
        **inputs_of(CONDITION.text), generation_mode="image", do_sample=False
    )
    first, second = finished(sampler, (3, 4)).latents
    assert torch.equal(first, second) and torch.equal(first[None], theirs)


def test_stepwise_equals_whole() -> None:
    whole = tiny_janus()(CONDITION.text, seed=5, n=3)
    sampler = sampler_of()
    for ours, plain, image in zip(
        sampler.decode(finished(sampler, (0, 1, 2), 5)), sampler.plain(CONDITION, (0, 1, 2), seed=5), whole
    ):
        assert np.array_equal(np.asarray(ours), np.asarray(image))
        assert np.array_equal(np.asarray(plain), np.asarray(image))


def test_the_prompt_and_the_guidance_matter() -> None:
    sampler = sampler_of()
    other = sampler.advance(sampler.init(Condition("a blue star"), (0,), seed=0), sampler.num_steps)
    tokens = [finished(sampler, (0,)), other, finished(sampler_of(guidance_scale=1.5), (0,))]
    assert len({state.latents.numpy().tobytes() for state in tokens}) == 3


def test_pruning_and_forks_are_exact() -> None:
    sampler = sampler_of()
    together = finished(sampler, (0, 1, 2, 3))
    state = sampler.advance(sampler.init(CONDITION, (0, 1, 2, 3), seed=0), 2)
    pruned = sampler.advance(state.select([3, 1]), 2)
    assert torch.equal(pruned.latents, together.latents[[3, 1]])
    # the state that was pruned is still whole, although rows were added to its cache meanwhile
    assert torch.equal(sampler.advance(state, 2).latents, together.latents)
    forks = sampler.advance(state.select([1, 1, 3], uids=(1, 20, 3)), 2)
    assert torch.equal(forks.latents[[0, 2]], together.latents[[1, 3]])
    assert torch.equal(forks.latents[1, :8], together.latents[1, :8])
    assert not torch.equal(forks.latents[1], together.latents[1])


def test_the_cache_equals_one_without_pieces() -> None:
    """Keys and values after forks, of both branches, are those of one pass over the same tokens."""
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1, 2), seed=0), 1).select([2, 0, 2], uids=(2, 0, 9))
    state = sampler.advance(state, 2)
    places = state.carry["cache"]
    assert isinstance(places, Rows)
    made = sampler._network.cached(sampler.encode(CONDITION), state.latents[:, :-1])
    for layer, ours in enumerate(made.layers):
        for row, place in enumerate(places):
            keys = torch.cat([piece.keys[layer] for piece in place.pieces], 2)
            assert torch.allclose(keys, ours.keys.unflatten(0, (2, 3))[:, row], atol=1e-5)
    words = sampler.words(CONDITION)
    assert [piece.tokens for piece in places[0].pieces] == [words, WIDTH - 1, WIDTH, WIDTH]
    assert places[0].pieces[1] is places[2].pieces[1], "the row before the fork is shared"
    assert places[0].pieces[0] is places[1].pieces[0], "the prompt is shared by all"
    assert places[0].pieces[2] is not places[2].pieces[2]


class Counted:
    """Counts rows of passes, and tokens in them, of the language model."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        n, length, _ = kwargs["inputs_embeds"].shape
        self.rows += n
        self.tokens += n * length


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}])
def test_the_ledger_counts_what_the_language_model_is_asked(settings: dict[str, Any]) -> None:
    sampler, ledger, counted = sampler_of(**settings), Ledger(), Counted()
    sampler.bind(ledger)
    language_model = tiny_janus().model.model.language_model
    hook = language_model.register_forward_pre_hook(counted, with_kwargs=True)
    try:
        state = sampler.init(CONDITION, (0, 1, 2), seed=0)
        assert (counted.rows, ledger.spent) == (0, Cost())
        price = sampler.price(state, 1)
        state = sampler.advance(state)
        branches, words = sampler._network.branches, sampler.words(CONDITION)
        # the prompt once, then three tokens of each particle
        assert counted.rows == ledger.spent.nfe == branches * (1 + 3 * 3)
        assert counted.tokens == ledger.spent.tokens == branches * (words + 3 * 3)
        assert ledger.spent == price
        forks = state.select([0, 0, 0, 2], uids=(0, 7, 8, 2))
        price = sampler.price(forks, 1)
        before = ledger.spent
        forks = sampler.advance(forks)
        # two passes for four particles, then three for each
        assert ledger.spent.nfe - before.nfe == branches * (2 + 3 * 4) == price.nfe
        assert counted.rows == ledger.spent.nfe and counted.tokens == ledger.spent.tokens
        assert len({row.numpy().tobytes() for row in forks.latents}) == 4
        end = sampler.advance(forks, 2)
        assert counted.rows == ledger.spent.nfe and counted.tokens == ledger.spent.tokens
        counted.rows, ledger.spent = 0, Cost()
        sampler.advance(sampler.renoise(end, 2), 2)
        assert counted.rows == ledger.spent.nfe == branches * 8 * 4, "the rows kept are in the cache"
    finally:
        hook.remove()


def test_multiply_accumulates_against_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = tiny_janus().configured({})
    model, encoded = network.pipe.model, network.encode(CONDITION)
    words = encoded.shape[1]
    model.set_attn_implementation("eager")  # torch does not count the others
    try:
        with FlopCounterMode(display=False) as first:
            cache, _ = network.start(encoded)
        with FlopCounterMode(display=False) as second:
            network.next(torch.tensor([3]), cache)
    finally:
        model.set_attn_implementation("sdpa")
    # eager attention computes what the causal mask hides as well
    hidden = 2 * 2 * 32 * words * (words - 1) // 2
    assert first.get_total_flops() // 2 == 2 * (network.macs(words, words) + hidden)
    aligner = 8 * 32 + 32 * 32
    assert second.get_total_flops() // 2 == 2 * (network.macs(1, words + 1) + aligner)


def test_going_back_keeps_the_first_rows() -> None:
    sampler = sampler_of()
    end = finished(sampler, (0,))
    back = sampler.renoise(end.select([0, 0], uids=(5, 6)), 3)
    again = sampler.advance(back)
    assert torch.equal(again.latents[:, :12], end.latents[:, :12].expand(2, -1))
    assert len(np.unique(torch.cat([end.latents, again.latents]).numpy(), axis=0)) == 3
    # what follows is drawn as if it had been drawn at once
    afresh = sampler.advance(sampler.renoise(finished(sampler, (5,)), 0), 4)
    assert torch.equal(afresh.latents, finished(sampler, (5,)).latents)


def test_a_row_is_drawn_again_by_the_model() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0,), seed=0), 3)
    assert sampler.move(3, 0.5) == RowNoise(0.25) and sampler.move(0, 0.5) is None
    forks = state.select([0] * 3, uids=(0, 8, 9))
    same = sampler.advance(sampler.apply(RowNoise(0.0), forks))
    assert torch.equal(same.latents, forks.latents), "with the same numbers, the same row"
    fresh = sampler.apply(RowNoise(1.0), forks)
    assert fresh.step == 2
    children = sampler.advance(fresh)
    assert torch.equal(children.latents[:, :8], forks.latents[:, :8])
    assert not torch.equal(children.latents[:, 8:], forks.latents[:, 8:])
    # a child's tokens are those that the model draws by its numbers
    numbers = children.carry["used"]
    assert isinstance(numbers, Tensor)
    network = sampler._network
    cache, logits = network.start(sampler.encode(CONDITION))
    tokens: list[Tensor] = []
    for column in range(12):
        if tokens:
            logits = network.next(tokens[-1], cache)
        tokens.append(draw(network.probability(logits), numbers[1:2, column]))
    assert torch.equal(torch.cat(tokens), children.latents[1])
    # sent back without the move, numbers are fresh again
    later = sampler.advance(sampler.renoise(children, 1), 1)
    assert torch.equal(later.latents[0], sampler.advance(sampler.renoise(state, 1), 1).latents[0])
    with pytest.raises(ConfigError, match="drawn again after the first one, but the state is at step 0"):
        sampler.apply(RowNoise(0.5), sampler.init(CONDITION, (0,), seed=0))


def codes_of(images: Any) -> list[bytes]:
    return [np.asarray(image).tobytes() for image in images]


def test_previews_fill_the_tail_and_say_what_is_theirs() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    previews = sampler.preview(state)
    filled = torch.cat([state.latents, state.latents[:, 4:8], state.latents[:, 4:8]], 1)
    assert codes_of(previews) == codes_of(sampler.decoded(filled))
    assert [p.info["real_tokens"] for p in previews if isinstance(p, Image.Image)] == ["0.500"] * 2
    # sent back from a finished sample, the rest of that is the tail
    end = sampler.advance(state, 2)
    back = sampler.renoise(end.select([0, 0], uids=(8, 9)), 1)
    state = sampler.advance(back)
    filled = torch.cat([state.latents, end.latents[[0, 0], 8:]], 1)
    assert codes_of(sampler.preview(state)) == codes_of(sampler.decoded(filled))
    with pytest.raises(CapabilityError, match="A preview needs at least one row"):
        sampler.preview(sampler.init(CONDITION, (0,), seed=0))


@pytest.mark.parametrize(("preview", "rows"), [("expected", 1), ("complete", 2)])
def test_greedy_previews_at_their_price(preview: str, rows: int) -> None:
    sampler, ledger = sampler_of(preview), Ledger()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    sampler.bind(ledger)
    previews = sampler.preview(state)
    assert ledger.spent == sampler.preview_cost(CONDITION, 2) * 2
    assert sampler.preview_cost(CONDITION, 2) == sampler.cost(CONDITION, 2, rows)
    network = sampler._network
    tokens = state.latents
    for _ in range(rows * WIDTH):
        cache = network.cached(network.encode(CONDITION), tokens[:, :-1])
        tokens = torch.cat([tokens, network.next(tokens[:, -1], cache).argmax(-1, keepdim=True)], 1)
    tokens = torch.cat([tokens, tokens[:, -WIDTH:].repeat(1, 2 - rows)], 1)
    assert codes_of(previews) == codes_of(sampler.decoded(tokens))
    assert sampler.preview_cost(CONDITION, ROWS) == Cost()


def test_micro_batches_change_nothing() -> None:
    contexts = [
        SearchContext(sampler_of(), TargetReward(), Prompt(CONDITION.text), seed=1, max_batch=size)
        for size in (None, 2, 1)
    ]
    ends = [ctx.finish(ctx.advance(ctx.init(3), 2)) for ctx in contexts]
    assert torch.equal(ends[0].latents, ends[1].latents)
    assert torch.equal(ends[0].latents, ends[2].latents)


def test_a_new_condition_comes_before_the_first_row() -> None:
    sampler, star = sampler_of(), Condition("a blue star")
    start = sampler.init(CONDITION, (0, 1), seed=0)
    mixed = State(start.latents, 0, start.uids, (star, CONDITION), 0, start.carry)
    end = sampler.advance(sampler.recondition(mixed), ROWS)
    alone = sampler.advance(sampler.init(star, (0,), seed=0), ROWS)
    assert torch.equal(end.latents[:1], alone.latents)
    with pytest.raises(CapabilityError, match=r"before the first row.*but the state is at row 1"):
        sampler.recondition(sampler.advance(start))


@pytest.mark.parametrize("algorithm", ["evosearch", "beam_search"])
def test_searches_survive_kills(algorithm: str, tmp_path: Path) -> None:
    """What is resumed ends with the same samples, scores and costs as what was not killed."""
    verifier = as_verifier(brightness, "brightness")
    search = partial(lookup("algorithm", algorithm).target, **KILLED[algorithm])
    kill_everywhere(search, sampler_of, verifier, tmp_path, most=4)


@pytest.mark.parametrize(
    "algorithm", ["best_of_n", "beam_search", "fk_steering", "search_over_paths", "evosearch"]
)
def test_algorithms_run_unchanged(algorithm: str, tmp_path: Path) -> None:
    pipe = tiny_janus()
    found = [
        tts_vision.search(
            pipe,
            CONDITION.text,
            algorithm=algorithm,
            verifier=brightness,
            budget="6x",
            seed=0,
            output=tmp_path / name,
        )
        for name in "ab"
    ]
    plain = brightness([pipe(CONDITION.text, seed=0)[0]], [])[0]
    assert found[0].best.score.value >= plain
    assert found[0].best.uid == found[1].best.uid and found[0].spent.nfe == found[1].spent.nfe
    assert tts_vision.replay(tmp_path / "a", pipe).max_difference == 0
    assert found[0].spent.macs <= 6 * JanusSampler(pipe).cost(CONDITION, 0, ROWS).macs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "must be one of guidance_scale.*did you mean 'guidance_scale'"),
        ({"guidance_scale": 0.5}, r"guidance_scale of tiny-janus must be at least 1 but got 0\.5"),
        ({"temperature": 0.0}, "tau must be above 0|temperature must be above 0"),
        ({"top_p": 2.0}, "top_p must lie in"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(**settings)


def test_bad_prompts_and_models() -> None:
    with pytest.raises(ConfigError, match="at most 48 tokens for tiny-janus but has 65"):
        sampler_of().init(Condition("red " * 60), (0,), seed=0)
    with pytest.raises(ConfigError, match="must have no negative text"):
        sampler_of().init(Condition("a star", negative_text="blurry"), (0,), seed=0)
    import copy

    pipe = tiny_janus()
    model = copy.copy(pipe.model)
    model.generation_config = copy.deepcopy(pipe.model.generation_config)
    model.generation_config.generation_kwargs = {}
    bare = JanusPipeline(model, pipe.processor, "bare")
    with pytest.raises(PipelineError, match=r"has no boi_token_id; load it .* or set guidance_scale=1"):
        JanusSampler(bare).init(CONDITION, (0,), seed=0)
    unguided = JanusSampler(bare, options=SamplerOptions(pipeline_kwargs={"guidance_scale": 1.0}))
    assert isinstance(unguided._network, JanusNetwork)
    assert len(unguided.init(CONDITION, (0,), seed=0)) == 1
