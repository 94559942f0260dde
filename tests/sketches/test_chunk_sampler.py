"""A video model of chunks keeps the contract of samplers; prompts and branches chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from chunk_sampler import CHUNK_NOISE, ChunkSampler, RedoChunk, direction_of

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import describe, from_description
from tts_vision.ranking import top_k
from tts_vision.testing.contracts import SEED, SamplerContract, kill_everywhere
from tts_vision.types import Media, Modality, Prompt, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

CONDITION = Condition("a ball rolls")
STAGES = ("a ball rolls", "the ball jumps", "the ball rests")


class Calm(Verifier):
    """Likes clips without motion; keeps the prompts that it was asked about."""

    name = "calm"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        clips = [clip.frames.float() for clip in media if isinstance(clip, Video)]
        self.asked += [(prompt.text, len(clip)) for prompt, clip in zip(prompts, clips)]
        return [Score(value=-float(clip.diff(dim=0).abs().mean()) / 42) for clip in clips]


class TestChunkSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return ChunkSampler()


def finished(state: State) -> State:
    sampler = ChunkSampler()
    return sampler.advance(state, sampler.num_steps - state.step)


def test_each_chunk_follows_its_prompt_and_the_frames_before() -> None:
    sampler = ChunkSampler(chunk_steps=4, frames=2)
    state = sampler.advance(sampler.init(CONDITION, range(200), seed=0), 4)
    change = (sampler.advance(state, 4).latents[:, -1] - state.latents[:, -1]).mean(0)
    assert float(torch.nn.functional.cosine_similarity(change, direction_of(CONDITION, 8), dim=0)) > 0.98


def test_a_new_prompt_between_chunks_leaves_the_frames_before() -> None:
    sampler, jump = ChunkSampler(), Condition(STAGES[1])
    state = sampler.advance(sampler.init(CONDITION, [0, 1], seed=0), 4)
    changed = finished(sampler.recondition(replace(state, conditions=(CONDITION, jump))))
    plain = finished(state)
    assert torch.equal(changed.latents[:, :2], plain.latents[:, :2])
    assert torch.equal(changed.latents[:1], plain.latents[:1])
    assert not torch.equal(changed.latents[1:, 2:], plain.latents[1:, 2:])
    with pytest.raises(CapabilityError, match="between chunks of 4 steps but the state is at step 5"):
        sampler.recondition(sampler.advance(state))


@pytest.mark.parametrize(("step", "back"), [(1, 0), (3, 0), (4, 0), (5, 4), (8, 4), (11, 8)])
def test_a_move_begins_the_latest_chunk_again(step: int, back: int) -> None:
    sampler = ChunkSampler()
    parents = sampler.advance(sampler.init(CONDITION, [0, 1], seed=0), step)
    move = sampler.move(step, 0.6)
    assert move == RedoChunk(0.6, 4)
    children = sampler.apply(move, parents)
    assert (children.step, children.latents.shape[1]) == (back, parents.latents.shape[1])
    history = children.latents[:, :-2]
    assert torch.equal(history, parents.latents[:, :-2])
    same = sampler.apply(RedoChunk(0.0, 4), parents)
    again = sampler.advance(same, step - back)
    assert torch.equal(again.latents, parents.latents)  # from the same noise, the same chunk
    assert torch.equal(again.carry[CHUNK_NOISE], parents.carry[CHUNK_NOISE])


def test_new_noise_keeps_its_variance() -> None:
    sampler = ChunkSampler()
    parents = sampler.advance(sampler.init(CONDITION, range(500), seed=0), 6)
    began, begins = parents.carry[CHUNK_NOISE], sampler.apply(RedoChunk(0.6, 4), parents).latents[:, -2:]
    assert float(begins.std()) == pytest.approx(1.0, abs=0.03)
    kept = torch.nn.functional.cosine_similarity(began.flatten(), begins.flatten(), dim=0)
    assert float(kept) == pytest.approx(0.8, abs=0.03)


def test_moves_that_cannot_be() -> None:
    sampler = ChunkSampler()
    assert sampler.move(sampler.num_steps, 0.5) is None
    assert from_description(describe(RedoChunk(0.2, 4))) == RedoChunk(0.2, 4)
    with pytest.raises(ConfigError, match="needs one step of it but got step 0"):
        sampler.apply(RedoChunk(0.5, 4), sampler.init(CONDITION, [0], seed=0))
    with pytest.raises(ConfigError, match=r"beta must be in \[0, 1\] but got 2"):
        RedoChunk(2.0, 4)


def tree_of_frames(ctx: SearchContext, *, n: int = 4, branch: int = 2, keep: int = 2) -> State:
    """Branches at every chunk; the best by the prompt of the chunk go on (Video-T1, Liu et al. 2025)."""
    state, chunk_steps = ctx.init(n), ctx.num_steps // len(STAGES)
    for stage, text in enumerate(STAGES):
        if stage:
            state = ctx.recondition(state, Condition(text))
        state = ctx.advance(state, chunk_steps)
        if stage < len(STAGES) - 1:
            best = top_k(ctx.score(state, prompt=Prompt(text)), keep)
            state = ctx.select(state, [row for row in best for _ in range(branch)])
    ctx.score(state)
    return state


def test_stages_are_generated_and_judged_by_prompts_of_their_own() -> None:
    verifier = Calm()
    ctx = SearchContext(ChunkSampler(), verifier, Prompt("a ball rolls, jumps and rests"), seed=SEED)
    state = tree_of_frames(ctx)
    assert {condition.text for condition in state.conditions} == {STAGES[-1]}
    assert list(dict.fromkeys(verifier.asked)) == [
        (STAGES[0], 2),
        (STAGES[1], 4),
        ("a ball rolls, jumps and rests", 6),  # the whole by the prompt of the user
    ]
    assert len({row.numpy().tobytes() for row in state.latents}) == 4


def test_a_tree_of_frames_survives_a_kill_anywhere(tmp_path: Path) -> None:
    kill_everywhere(tree_of_frames, ChunkSampler, Calm(), tmp_path)


def test_evolution_survives_a_kill_anywhere(tmp_path: Path) -> None:
    algorithm = partial(evosearch, evolution_schedule=[0, 5, 8], population_schedule=[3, 3, 3, 3], elites=1)
    kill_everywhere(algorithm, ChunkSampler, Calm(), tmp_path)


@pytest.mark.parametrize(
    "algorithm", ["best_of_n", "beam_search", "fk_steering", "greedy", "evosearch", "zero_order"]
)
def test_searches_run_unchanged(algorithm: str) -> None:
    result = tts_vision.search(
        ChunkSampler(), "a ball rolls", algorithm=algorithm, verifier=Calm(), budget="16x"
    )
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert result.spent.nfe <= 16 * 12
