"""A network of image tokens whose every probability is known, and its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError

GRID, VOCABULARY = (4, 4), 6
WORDS = ("red", "green", "blue", "two", "circles", "star")


@dataclass
class ToyNetwork:
    """Neighbours agree, and words of the prompt make some tokens likelier. Counts its evaluations.

    Attributes:
        guidance_scale: How much the prompt counts; 0 leaves out the branch without it.
        asked: Rows of each evaluation.
    """

    guidance_scale: float = 1.0
    asked: list[int] = field(default_factory=list)

    grid = GRID
    vocabulary = VOCABULARY
    device = torch.device("cpu")
    overrides: frozenset[str] = frozenset()

    @property
    def branches(self) -> int:
        return 2 if self.guidance_scale else 1

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"guidance_scale": self.guidance_scale}

    def encode(self, condition: Condition) -> Tensor:
        if len(condition.text) > 200:
            raise ConfigError("A prompt must have at most 200 characters; shorten it.")
        return torch.tensor([word in condition.text for word in WORDS]).float()

    def words(self, condition: Condition) -> int:
        return len(condition.text.split())

    def logits(self, encoded: Tensor, codes: Tensor) -> Tensor:
        self.asked.append(len(codes))
        known = torch.nn.functional.one_hot(codes, VOCABULARY).float()
        near = known.roll(1, 1) + known.roll(-1, 1) + known
        return 0.8 * near + self.guidance_scale * encoded

    def codebook(self) -> Tensor:
        torch.manual_seed(0)
        return torch.nn.Embedding(VOCABULARY, 4).weight.detach()

    def pixels(self, codes: Tensor) -> Tensor:
        colours = torch.linspace(-1, 1, VOCABULARY)[codes].view(-1, 1, *GRID).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(colours, scale_factor=4)

    def image_codes(self, pixels: Tensor) -> Tensor:
        small = pixels.mean(1)[:, ::4, ::4].flatten(1)
        return ((small + 1) / 2 * (VOCABULARY - 1)).round().long()

    def macs(self, words: int) -> int:
        return 1000 + words


@dataclass
class ToyPipeline:
    """The network as a pipeline; remembers the networks that it made."""

    family: str = "discrete_flow"
    name: str = "toy-flow"
    sampling: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": 8})
    settings: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    made: list[ToyNetwork] = field(default_factory=list)

    def configured(self, call: Mapping[str, Any]) -> ToyNetwork:
        self.made.append(ToyNetwork(**call))
        return self.made[-1]
