"""Arguments of pipelines whose type and range are the same everywhere."""

from __future__ import annotations

import re
from typing import Any

from tts_vision.parameters import is_finite
from tts_vision.plain_values import is_live_name

TEXT_ARGUMENT = re.compile(r"(negative_)?prompt(_\d+)?")
_SIZE_ARGUMENTS = {"height": 32_768, "width": 32_768, "num_frames": 100_000, "num_inference_steps": 10_000}
_NUMBER_ARGUMENTS = ("guidance_scale", "true_cfg_scale", "guidance_rescale", "strength", "eta")
_LIST_ARGUMENTS = ("sigmas", "timesteps")
_OBJECT_ARGUMENT = re.compile(
    r"(\w+_)?(image|images|mask|video|embeds|latents)|generator|callback(_on_step_end)?|\w*attention_kwargs"
)
_LARGEST = 1e6


def broken_rule(name: str, value: Any) -> str:
    """The rule that an argument of a pipeline breaks; empty if it breaks none."""
    if is_live_name(value):
        return ""  # an object of the search that the configuration was written for
    if not is_finite(value):
        return "finite"
    of_numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value)
    if _OBJECT_ARGUMENT.fullmatch(name) and (of_numbers or isinstance(value, (str, int, float))):
        return "an object, which only Python can give"
    if value is None or not isinstance(value, (str, int, float)):
        return ""
    if name in _LIST_ARGUMENTS:
        return "a list of numbers"
    if TEXT_ARGUMENT.fullmatch(name):
        return "" if isinstance(value, str) else "a text"
    if name in _SIZE_ARGUMENTS:
        least = 1 if name != "num_inference_steps" else -(10**9)  # of too few the sampler says more
        most = _SIZE_ARGUMENTS[name]
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return "" if fits else f"a whole number from 1 to {most}"
    if name in _NUMBER_ARGUMENTS:
        if isinstance(value, (str, bool)) or abs(value) > _LARGEST:
            return "a number" if isinstance(value, (str, bool)) else f"at most {_LARGEST:g}"
        return "from 0 to 1" if name == "strength" and not 0 <= value <= 1 else ""
    return ""
