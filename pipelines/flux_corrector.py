"""ReflectionFlow's corrector as a model: where its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tts_vision.config import ModelOptions
from tts_vision.errors import PipelineError
from tts_vision.pipelines.published import parts_of, placed
from tts_vision.registry import register

if TYPE_CHECKING:
    from tts_vision.pipelines.flux_correction import FluxReflectionEditPipeline

BASE, LORA = "black-forest-labs/FLUX.1-dev", "diffusion-cot/FLUX-Corrector"
FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"


@register(
    "model",
    "flux-corrector",
    paper="ReflectionFlow (Zhuo et al. 2025, arXiv:2504.16080)",
    notes={
        "takes": "flux-corrector:base=PATH,lora=PATH, folders or hub ids",
        "weights": f"{BASE}, {LORA}",
        "licence": "of the weights; FLUX.1-dev is not for commercial use",
    },
)
def load_flux_corrector(
    name: str = "flux-corrector", *, options: ModelOptions | None = None
) -> FluxReflectionEditPipeline:
    """ReflectionFlow's corrector: Flux that redraws a rejected image by the reason.

    Args:
        name: Such as ``flux-corrector:base=/models/flux,lora=/models/corrector``: a Flux, and the file or
            the folder of the LoRA. By default the authors' repositories.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit, or the base is no Flux.
        ConfigError: If the name has a part that is none.
    """
    from diffusers import FluxTransformer2DModel

    from tts_vision.pipelines.flux_correction import CorrectionTransformer, FluxReflectionEditPipeline
    from tts_vision.pipelines.loading import load
    from tts_vision.pipelines.var.loading import locate, read_state

    _, parts = parts_of(name, ("base", "lora"))
    where = placed(options)
    dtype = str(where["dtype"]).removeprefix("torch.")
    base = load(parts.get("base", BASE), options=ModelOptions(device=str(where["device"]), dtype=dtype))  # type: ignore[arg-type]
    if not isinstance(getattr(base, "transformer", None), FluxTransformer2DModel):
        raise PipelineError(
            f"The base of flux-corrector must be a Flux but got a {type(base).__name__}; name another one."
        )
    source = locate(parts.get("lora", LORA), (FILE,), "flux-corrector")
    transformer = CorrectionTransformer.of(base.transformer)
    transformer.add_lora(read_state(source, "flux-corrector"), _scale_of(source), repr(str(source)))
    kept = {key: part for key, part in base.components.items() if key != "transformer"}
    return FluxReflectionEditPipeline(**kept, transformer=transformer)


def _scale_of(source: Path) -> float:
    """Alpha over rank, where a file says it; else 1, as diffusers takes it."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        told = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    alpha, rank = told.get("transformer.lora_alpha"), told.get("transformer.r")
    return alpha / rank if alpha and rank else 1.0
