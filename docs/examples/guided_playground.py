"""A model: a function that loads a pipeline under a name of its own, with its own defaults."""

from typing import Any

from tts_vision import ModelOptions, register
from tts_vision.pipelines.bundled import load_playground


@register(
    "model",
    "guided-playground",
    verifier="playground_clip",
    features="playground_features",
    notes={"draws": "the playground's world, with stronger guidance"},
)
def load(name: str = "guided-playground", *, options: ModelOptions | None = None) -> Any:
    """The playground with guidance 3.

    Args:
        name: As the user wrote it.
        options: Precision, device and everything else that the user set.
    """
    pipe = load_playground(options=options)  # any diffusers pipeline, or a Sampler
    pipe.tts_vision_defaults = {"num_inference_steps": 13, "guidance_scale": 3.0}
    return pipe
