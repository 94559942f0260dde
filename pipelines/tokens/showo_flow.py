"""A Show-o as a discrete flow: the same network on codes that have not arrived yet, and no mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.pipelines.tokens.flow import DiscreteFlow, FlowSettings, flow_settings
from tts_vision.pipelines.tokens.model import split_settings
from tts_vision.pipelines.tokens.showo import ShowoPipeline
from tts_vision.pipelines.var.model import OutputType, images_of


@dataclass(frozen=True)
class ShowoFlow(ShowoPipeline):
    """Draws images of a text by jumps of their codes; for a model that was trained on such codes."""

    family: ClassVar[str] = "discrete_flow"

    @classmethod
    def of(cls, pipe: ShowoPipeline, defaults: Mapping[str, Any], name: str) -> ShowoFlow:
        """The network of a masked model that was trained on both kinds of codes.

        Args:
            pipe: The masked model.
            defaults: Of the settings of a call.
            name: Shown in reports.
        """
        return cls(pipe.transformer, pipe.tokenizer, pipe.image_tokenizer, pipe.layout, defaults, name)

    def __call__(
        self, prompt: str, *, seed: int = 0, n: int = 1, output_type: OutputType = "pil", **call: Any
    ) -> list[Image.Image] | Tensor:
        """Draws images: the plain samples of a seed.

        Args:
            prompt: The text.
            seed: Root seed; image ``i`` is that of particle ``i`` of a search with this seed.
            n: How many.
            output_type: ``pil`` for images, ``tokens`` for their codes ``(n, S)``.
            call: Settings, as in `ConfiguredShowo` and `FlowSettings`.

        Raises:
            ConfigError: If a setting is unknown or out of range, or the prompt is too long.
        """
        if output_type not in ("pil", "tokens"):
            raise ConfigError(f"output_type must be 'pil' or 'tokens' but got {output_type!r}; change it.")
        own, networks = split_settings(self, vars(FlowSettings()), call)
        network = self.configured(networks)
        codes = DiscreteFlow(network, flow_settings(own)).samples(Condition(prompt), seed, range(n))
        return codes if output_type == "tokens" else images_of(network.pixels(codes))
