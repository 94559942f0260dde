"""The sampler of masked-token models, on a tiny Show-o."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_showo import tiny_showo

from tts_vision.config import SamplerOptions
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.testing.contracts import SamplerContract


def sampler_of(**options: Any) -> MaskedSampler:
    return MaskedSampler(tiny_showo(), options=SamplerOptions(**options))


class TestMaskedSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return sampler_of()


class TestNoiseOfAllSteps(SamplerContract):
    @pytest.fixture
    def sampler(self) -> MaskedSampler:
        return sampler_of(stochastic=False, pipeline_kwargs={"guidance_scale": 0})
