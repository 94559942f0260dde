"""The sampler of chunks keeps the contract of samplers; prompts, branches and moves chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_chunks import WIDTH, ToyClips

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Condition
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError, ForkError
from tts_vision.moves import describe, from_description
from tts_vision.pipelines.chunk_sampler import CHUNK_NOISE, ChunkSampler, RedoChunk
from tts_vision.ranking import top_k
from tts_vision.resolve import Live, find_sampler
from tts_vision.testing.contracts import SEED, SamplerContract, kill_everywhere
from tts_vision.types import Media, Modality, Prompt, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

CONDITION = Condition("a ball rolls")
STAGES = ("a ball rolls", "the ball jumps", "the ball rests")


def sampler_of(pipe: ToyClips | None = None, **options: Any) -> ChunkSampler:
    return ChunkSampler(pipe or ToyClips(), options=SamplerOptions(**options))


def finished(sampler: ChunkSampler, state: State) -> State:
    return sampler.advance(state, sampler.num_steps - state.step)


def model_of(sampler: ChunkSampler) -> ToyClips:
    return sampler._model  # type: ignore[return-value]


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


class TestChunks(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of()


class TestStepsWithinChunks(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of(inner_steps=True)


class TestNoiseWithinChunks(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of(ToyClips(draws=0.1))


class TestSharedRoots(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of(branch_noise="shared_root")


class TestSharedRootsWithNoiseWithinChunks(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of(ToyClips(draws=0.1), branch_noise="shared_root")


class TestChunksOfSeveralLengths(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return sampler_of(ToyClips(frames=(1, 3, 2), draws=0.1), inner_steps=True)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("draws", [0.0, 0.1])
def test_an_unforked_particle_is_the_sample_of_the_call(inner: bool, draws: float) -> None:
    sampler = sampler_of(ToyClips(draws=draws), inner_steps=inner)
    clips = sampler.decode(finished(sampler, sampler.init(CONDITION, [0, 3], seed=SEED)))
    plain = sampler.plain(CONDITION, [0, 3], seed=SEED)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(clips, plain))  # type: ignore[union-attr]


def test_units_are_the_steps_at_which_chunks_begin() -> None:
    assert sampler_of().units == (0, 1, 2)
    assert sampler_of(inner_steps=True).units == (0, 4, 8)
    assert sampler_of(inner_steps=True).num_steps == 12


def test_a_fork_begins_a_chunk_with_its_own_noise_and_keeps_the_frames_before() -> None:
    sampler = sampler_of()
    parent = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    ends = finished(sampler, parent.select([0, 0, 0], uids=(0, 1, 2))).latents
    assert len({row.numpy().tobytes() for row in ends}) == 3
    assert torch.equal(ends[:1], finished(sampler, parent).latents)
    assert all(torch.equal(row[:, :2], ends[0, :, :2]) for row in ends)


def test_forks_share_the_noise_of_their_root_if_asked_to() -> None:
    plain, sampler = sampler_of(), sampler_of(branch_noise="shared_root")
    parents = sampler.advance(sampler.init(CONDITION, [0, 1], seed=SEED))
    forks = finished(sampler, parents.select([0, 1, 1], uids=(0, 1, 2)))
    assert torch.equal(forks.latents[1], forks.latents[2])
    alone = finished(plain, plain.init(CONDITION, [0, 1], seed=SEED))
    assert torch.equal(forks.latents[:2], alone.latents)
    with pytest.raises(ForkError, match="adds no noise after its start"):
        sampler.requires_fork(1)


def test_forks_of_a_root_differ_by_what_denoising_draws() -> None:
    sampler = sampler_of(ToyClips(draws=0.1), branch_noise="shared_root")
    parent = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    forks = sampler.advance(parent.select([0, 0], uids=(0, 1)))
    assert torch.equal(forks.carry[CHUNK_NOISE][0], forks.carry[CHUNK_NOISE][1])  # type: ignore[index]
    assert not torch.equal(forks.latents[0], forks.latents[1])
    assert sampler.facts(CONDITION)["plain"] is False
    with pytest.raises(CapabilityError, match="branch_noise is 'shared_root'"):
        sampler.plain(CONDITION, [0], seed=SEED)


def test_each_chunk_follows_its_prompt() -> None:
    sampler, jump = sampler_of(), Condition(STAGES[1])
    state = sampler.advance(sampler.init(CONDITION, range(200), seed=0))
    changed = sampler.advance(sampler.recondition(replace(state, conditions=(jump,) * 200)))
    change = (changed.latents[:, :, -1] - state.latents[:, :, -1]).mean(0).flatten()
    toward = ToyClips().encode(jump)
    assert float(torch.nn.functional.cosine_similarity(change, toward, dim=0)) > 0.95
    assert torch.equal(changed.latents[:, :, :2], state.latents)


def test_a_new_prompt_between_chunks_leaves_the_other_rows() -> None:
    sampler, jump = sampler_of(inner_steps=True), Condition(STAGES[1])
    state = sampler.advance(sampler.init(CONDITION, [0, 1], seed=0), 4)
    changed = finished(sampler, sampler.recondition(replace(state, conditions=(CONDITION, jump))))
    plain = finished(sampler, state)
    assert torch.equal(changed.latents[:, :, :2], plain.latents[:, :, :2])
    assert torch.equal(changed.latents[:1], plain.latents[:1])
    assert not torch.equal(changed.latents[1:, :, 2:], plain.latents[1:, :, 2:])
    with pytest.raises(CapabilityError, match="between chunks of 4 steps but the state is at step 5"):
        sampler.recondition(sampler.advance(state))


@pytest.mark.parametrize(("step", "back"), [(1, 0), (3, 0), (4, 0), (5, 4), (8, 4), (11, 8)])
def test_a_move_begins_the_latest_chunk_again(step: int, back: int) -> None:
    sampler = sampler_of(inner_steps=True)
    parents = sampler.advance(sampler.init(CONDITION, [0, 1], seed=0), step)
    move = sampler.move(step, 0.6)
    assert move == RedoChunk(0.6, 4)
    children = sampler.apply(move, parents)
    assert (children.step, children.latents.shape) == (back, parents.latents.shape)
    assert torch.equal(children.latents[:, :, :-2], parents.latents[:, :, :-2])
    again = sampler.advance(sampler.apply(RedoChunk(0.0, 4), parents), step - back)
    assert torch.equal(again.latents, parents.latents)  # from the same noise, the same chunk
    assert torch.equal(again.carry[CHUNK_NOISE], parents.carry[CHUNK_NOISE])  # type: ignore[arg-type]


def test_new_noise_keeps_its_variance() -> None:
    sampler = sampler_of(inner_steps=True)
    parents = sampler.advance(sampler.init(CONDITION, range(500), seed=0), 6)
    began, begins = parents.carry[CHUNK_NOISE], sampler.apply(RedoChunk(0.6, 4), parents).latents[:, :, -2:]
    assert isinstance(began, torch.Tensor)
    assert float(begins.std()) == pytest.approx(1.0, abs=0.03)
    kept = torch.nn.functional.cosine_similarity(began.flatten(), begins.flatten(), dim=0)
    assert float(kept) == pytest.approx(0.8, abs=0.03)


def test_a_clip_goes_back_to_a_chunk_and_pays_for_the_later_ones_alone() -> None:
    sampler = sampler_of()
    state = finished(sampler, sampler.init(CONDITION, [0, 1], seed=0))
    back = sampler.renoise(state.select([0, 0], uids=(5, 6)), 1)
    assert (back.step, back.latents.shape[2]) == (1, 4)
    before = model_of(sampler).forwarded
    ends = finished(sampler, back)
    assert model_of(sampler).forwarded - before == 2 * 2 * 4  # two rows, two chunks, four steps
    assert all(torch.equal(row[:, :2], state.latents[0, :, :2]) for row in ends.latents)
    assert not torch.equal(ends.latents[0], ends.latents[1])


def test_previews_are_the_frames_of_the_finished_clip() -> None:
    sampler = sampler_of()
    state = sampler.init(CONDITION, [0, 1], seed=0)
    with pytest.raises(CapabilityError, match="needs a finished chunk or an estimate"):
        sampler.preview(state)
    previews = [sampler.preview(state := sampler.advance(state)) for _ in range(2)]
    for clips in zip(*previews, sampler.decode(sampler.advance(state))):
        first, second, whole = (clip.frames for clip in clips)  # type: ignore[union-attr]
        assert torch.equal(first, whole[:2]) and torch.equal(second, whole[:4])


def test_an_unfinished_chunk_is_seen_as_its_estimate() -> None:
    sampler = sampler_of(inner_steps=True)
    state = sampler.advance(sampler.init(CONDITION, [0], seed=0), 5)
    clip = sampler.preview(state)[0]
    assert isinstance(clip, Video) and len(clip.frames) == 4
    wanted = model_of(sampler).pixels(state.carry["preview"])  # type: ignore[arg-type]
    assert torch.equal(clip.frames[2:].float(), (wanted[0] * 255).round().permute(0, 2, 3, 1))


def test_few_frames_of_a_preview_are_decoded() -> None:
    sampler, whole = sampler_of(preview_frames=2), sampler_of()
    state = sampler.advance(sampler.init(CONDITION, [0], seed=0), 2)
    clip, full = sampler.preview(state)[0], whole.preview(state)[0]
    assert isinstance(clip, Video) and isinstance(full, Video)
    assert model_of(sampler).decoded == [2] and torch.equal(clip.frames, full.frames[[1, 3]])
    assert (clip.fps, full.fps) == (4.0, 8.0)  # it lasts as long
    assert len(sampler.decode(sampler.advance(state))[0].frames) == 6  # type: ignore[union-attr]


def test_the_memory_of_a_clip_is_reported() -> None:
    sampler = sampler_of(ToyClips(frames=(500, 250)))
    assert "latent_megabytes" not in sampler.facts(CONDITION)
    state = finished(sampler, sampler.init(CONDITION, [0], seed=SEED))
    assert sampler.facts(CONDITION)["latent_megabytes"] == 750 * WIDTH * 4 / 1e6 == state.latents.nbytes / 1e6


def test_moves_and_steps_that_cannot_be() -> None:
    sampler = sampler_of(inner_steps=True)
    assert sampler.move(sampler.num_steps, 0.5) is None
    assert from_description(describe(RedoChunk(0.2, 4))) == RedoChunk(0.2, 4)
    assert "renoise" not in sampler.capabilities
    with pytest.raises(CapabilityError, match="a multiple of 4, but got 6"):
        sampler.renoise(sampler.advance(sampler.init(CONDITION, [0], seed=0), 8), 6)
    with pytest.raises(ConfigError, match="needs one step of it but got step 0"):
        sampler.apply(RedoChunk(0.5, 4), sampler.init(CONDITION, [0], seed=0))
    with pytest.raises(ConfigError, match=r"beta must be in \[0, 1\] but got 2"):
        RedoChunk(2.0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preview": "rollout:2"}, "is for diffusion and flow models"),
        ({"preview": "complete"}, "must be 'decode', the finished chunks"),
        ({"preview_size": 32}, "limit the frames of a preview by preview_frames"),
        ({"pipeline_kwargs": {"sigmas": [1.0]}}, "take guidance_scale alone"),
    ],
)
def test_options_that_have_no_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(**options)


def test_a_model_that_makes_chunks_whole_has_no_steps_within() -> None:
    with pytest.raises(ConfigError, match="makes each in one go"):
        sampler_of(ToyClips(steps=1), inner_steps=True)


def test_one_chunk_cannot_be_forked() -> None:
    sampler = sampler_of(ToyClips(frames=(4,)))
    assert sampler.last_noisy_step == -1 and "stochastic" not in sampler.capabilities


def test_samplers_refuse_options_that_they_do_not_read() -> None:
    options = SamplerOptions(branch_noise="shared_root", preview_frames=2)
    with pytest.raises(ConfigError, match="preview_frames needs a sampler of clips"):
        options.refuse_unread(frozenset(), "diffusers")
    with pytest.raises(ConfigError, match="branch_noise needs a video model that makes its clips chunk by"):
        options.refuse_unread(frozenset({"preview_frames"}), "diffusers")
    config = RunConfig(prompt="x", sampler_options=options)
    chosen = find_sampler(config, Live(pipe=ToyClips()), stochastic=False)
    assert isinstance(chosen, ChunkSampler) and chosen.branch_noise == "shared_root"


def tree_of_stages(ctx: SearchContext, *, n: int = 4, branch: int = 2, keep: int = 2) -> State:
    """Branches at every chunk; the best by the prompt of the chunk go on (Video-T1, Liu et al. 2025)."""
    state, ends = ctx.init(n), [*ctx.sampler.units[1:], ctx.num_steps]
    for stage, (text, end) in enumerate(zip(STAGES, ends)):
        if stage:
            state = ctx.recondition(state, Condition(text))
        state = ctx.advance(state, end - state.step)
        if end < ctx.num_steps:
            best = top_k(ctx.score(state, prompt=Prompt(text)), keep)
            state = ctx.select(state, [row for row in best for _ in range(branch)])
    ctx.score(state)
    return state


def test_stages_are_generated_and_judged_by_prompts_of_their_own() -> None:
    verifier = Calm()
    ctx = SearchContext(sampler_of(), verifier, Prompt("a ball rolls, jumps and rests"), seed=SEED)
    state = tree_of_stages(ctx)
    assert {condition.text for condition in state.conditions} == {STAGES[-1]}
    assert list(dict.fromkeys(verifier.asked)) == [
        (STAGES[0], 2),
        (STAGES[1], 4),
        ("a ball rolls, jumps and rests", 6),  # the whole by the prompt of the user
    ]
    assert len({row.numpy().tobytes() for row in state.latents}) == 4


@pytest.mark.parametrize("inner", [False, True])
def test_a_tree_survives_a_kill_anywhere(tmp_path: Path, inner: bool) -> None:
    kill_everywhere(tree_of_stages, lambda: sampler_of(inner_steps=inner), Calm(), tmp_path)


def test_evolution_survives_a_kill_anywhere(tmp_path: Path) -> None:
    algorithm = partial(evosearch, evolution_schedule=[0, 5, 8], population_schedule=[3, 3, 3, 3], elites=1)
    kill_everywhere(algorithm, lambda: sampler_of(inner_steps=True), Calm(), tmp_path)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "algorithm",
    ["best_of_n", "beam_search", "fk_steering", "greedy", "evosearch", "zero_order", "search_over_paths"],
)
def test_searches_run_unchanged(algorithm: str, inner: bool) -> None:
    if inner and algorithm == "search_over_paths":
        pytest.skip("it goes back to steps within chunks")
    result = tts_vision.search(
        ToyClips(),
        "a ball rolls",
        algorithm=algorithm,
        verifier=Calm(),
        budget="16x",
        sampler_options=SamplerOptions(inner_steps=inner),
    )
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert result.spent.nfe <= 16 * 12
    assert result.best.load().frames.shape[2] == WIDTH
