"""ReflectionFlow's corrector: Flux that redraws the rejected image by the reason."""

from __future__ import annotations

from tts_vision.correctors.edit import EditCorrector
from tts_vision.errors import ConfigError
from tts_vision.registry import register


@register("corrector", "flux_corrector", paper="ReflectionFlow (Zhuo et al. 2025, arXiv:2504.16080)")
class FluxCorrector(EditCorrector):
    """Samples of Flux that looks at the rejected image, by a LoRA that was trained to correct images.

    Args:
        base: Folder or hub id of FLUX.1-dev; by default the authors'.
        lora: Folder, file or hub id of the LoRA; by default ReflectionFlow's.
        condition_size: Side of the square that the image is resized to before the model sees it, in pixels.
        instruction: The prompt of the new samples; the default is the release's.
    """

    name = "flux_corrector"

    def __init__(
        self,
        *,
        base: str | None = None,
        lora: str | None = None,
        condition_size: int = 512,
        instruction: str = "{prompt} [Reflexion]: {reason}",
    ) -> None:
        if condition_size < 16 or condition_size % 16:
            raise ConfigError(
                f"condition_size must be a multiple of 16 but got {condition_size}; 512 is the release's."
            )
        parts = ",".join(f"{key}={value}" for key, value in (("base", base), ("lora", lora)) if value)
        model = f"flux-corrector{':' if parts else ''}{parts}?condition_size={condition_size}"
        super().__init__(model=model, instruction=instruction)
