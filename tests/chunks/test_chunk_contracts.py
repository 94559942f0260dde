"""Autoregressive video pipelines keep the contract of samplers; searches run on them and can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_chunks import CALLS, call_of, sampler_of

import tts_vision
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifier import ALONE, Asked, Verifier


class Bright(Verifier):
    """Mean brightness of a clip."""

    name = "bright"
    accepts: frozenset[Modality] = frozenset({"video"})

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=float(clip.frames.float().mean())) for clip in media if isinstance(clip, Video)]


class TestChunkedPipelines(SamplerContract):
    @pytest.fixture(scope="class", params=["skyreels, blocks", "framepack, forwards", "ltx"])
    def sampler(self, request: pytest.FixtureRequest) -> ChunkSampler:
        return sampler_of(request.param)

    @pytest.fixture
    def tolerance(self) -> float:
        return 1e-4


@pytest.mark.parametrize("algorithm", ["best_of_n", "beam_search", "evosearch", "fk_steering"])
def test_searches_run_on_a_pipeline(algorithm: str) -> None:
    result = tts_vision.search(
        CALLS["helios"][0](),
        "two red circles",
        algorithm=algorithm,
        verifier=Bright(),
        budget="4x",
        pipeline_kwargs=call_of("helios"),
    )
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert result.spent.nfe <= 4 * 12
    assert result.best.load().frames.shape == (17, 16, 16, 3)


@pytest.mark.parametrize("name", ["helios", "framepack, forwards"])
def test_a_beam_survives_a_kill_anywhere(name: str, tmp_path: Path) -> None:
    sampler = sampler_of(name)
    kill_everywhere(partial(beam_search, width=1, branch=2), lambda: sampler, Bright(), tmp_path)


def test_only_what_a_chunk_needs_goes_to_the_device() -> None:
    sampler = sampler_of("helios", call={"num_frames": 9 * 12})
    seen = []
    hook = sampler._model.pipe.transformer.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args, kwargs: seen.append(kwargs["latents_history_long"].shape[2]), with_kwargs=True
    )
    state = sampler.init(sampler.condition_of(Prompt("two red circles")), [0], seed=0)
    state = sampler.advance(state, 8)
    hook.remove()
    given = sampler._model._continued  # type: ignore[attr-defined]
    chunk = torch.zeros(1, 16, 24, 2, 2)
    call = given(Chunk(8, 0, 1, chunk, chunk[:, :, :3], []))
    assert call["video_latents"].shape[2] == 19 and set(seen) == {16}
    assert all(tensor.device.type == "cpu" for tensor in (state.latents, *state.carry.values()))  # type: ignore[union-attr]
