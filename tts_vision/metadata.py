"""The facts that the file of a sample holds about itself, among them the line that web UIs read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from PIL import Image

from tts_vision.config import RunConfig
from tts_vision.media import facts_of
from tts_vision.rng import row_seed
from tts_vision.trace import Event, Family
from tts_vision.types import Media, Score

_VERSIONS = ("tts-vision", "torch", "diffusers")
_NO_FACTS: Mapping[str, Any] = MappingProxyType({})
# names of samplers in the web UIs, by class of diffusers' schedulers
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "FlowMatchHeunDiscreteScheduler": "Heun",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
_SCHEDULES = {
    "use_karras_sigmas": "Karras",
    "use_exponential_sigmas": "Exponential",
    "use_beta_sigmas": "Beta",
}


def sample_text(
    config: RunConfig,
    family: Family,
    uid: int,
    score: Score,
    *,
    settled: bool = True,
    facts: Mapping[str, Any] = _NO_FACTS,
    media: Media | None = None,
    preview_step: int | None = None,
) -> dict[str, str]:
    """The facts that a stored sample holds about itself.

    Args:
        config: The settings of the search.
        family: How particles came to be.
        uid: The particle.
        score: Its score.
        settled: Whether the value of the score is final; otherwise only its parts are told.
        facts: How the sampler generated it; see `Sampler.facts`.
        media: The sample, where it is at hand: adds its size, and for an image that a plain call of the
            generator makes again the ``parameters`` of web UIs.
        preview_step: The step of an unfinished sample.
    """
    value = repr(score.value) if settled else json.dumps(score.parts, sort_keys=True)
    condition = family.condition_of(uid) if uid in family.born else None
    unforked = from_seed(family, uid)
    text = {
        "prompt": config.prompt if condition is None else str(condition["text"]),
        "seed": str(config.seed),
        "uid": str(uid),
        "score": value,
        "verifier": config.verifier,
        "model": config.model,
        "algorithm": config.algorithm,
        "config": config.hash,
    }
    if score.reason:
        text["reason"] = score.reason
    if preview_step is not None:
        text["preview"] = f"unfinished, at step {preview_step}"
    if condition is not None:
        text |= {"condition": json.dumps(condition, ensure_ascii=False), "asked_prompt": config.prompt}
    if unforked:
        text["row_seed"] = str(row_seed(config.seed, uid))
    text |= {name: _text(fact) for name, fact in facts.items() if name != "plain"}
    text |= {} if media is None else facts_of(media)
    text["versions"] = json.dumps({name: version_of(name) for name in _VERSIONS})
    text["configuration"] = json.dumps(config.content, ensure_ascii=False, sort_keys=True)
    own = condition is None or not (condition.get("images") or condition.get("embeddings"))
    if unforked and own and facts.get("plain") and preview_step is None and isinstance(media, Image.Image):
        text["parameters"] = _parameters(text, facts)
    return text


def prompt_in(text: Mapping[str, str]) -> str | None:
    """The prompt that a sample is judged by, from the facts in its file; None where they do not say.

    Args:
        text: As `sample_text` made it. A sample may have been made by another wording than was asked for.
    """
    return text.get("asked_prompt") or text.get("prompt") or None


def model_fingerprint(events: Sequence[Event]) -> dict[str, str]:
    """A digest of what is known of a live pipeline at the beginning of a search; empty for a named model."""
    first = events[0] if events else None
    known = {} if first is None or first.kind != "began" else getattr(first, "fingerprint", {})
    facts = {key: value for key, value in known.items() if key.startswith("model")}
    if not facts:
        return {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return {"model_fingerprint": digest[:12]}


def from_seed(family: Family, uid: int) -> bool:
    """Whether a particle is the one that its row seed alone gives, without fork or move."""
    born = family.born.get(uid)
    return born is not None and born.origin == "init" and born.sampler is None


@cache
def version_of(name: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _text(fact: Any) -> str:
    if isinstance(fact, str):
        return fact
    return json.dumps(fact, ensure_ascii=False, sort_keys=True, default=str)


def _parameters(text: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The facts as AUTOMATIC1111's web UI writes and reads them, a format that others share.

    The prompt, a line with the negative prompt if there is one, a line of ``Key: value`` pairs.
    """
    scheduler: Mapping[str, Any] = facts.get("scheduler_config", {})
    name = _SAMPLERS.get(str(facts.get("scheduler")), str(facts.get("scheduler", "")))
    if name == "DPM++ 2M" and str(scheduler.get("algorithm_type", "")).startswith("sde"):
        name = "DPM++ 2M SDE"
    schedule = next((label for key, label in _SCHEDULES.items() if scheduler.get(key)), None)
    model = facts.get("model_id") or text["model"]
    pairs = {
        "Steps": facts.get("steps"),
        "Sampler": name or None,
        "Schedule type": schedule,
        "CFG scale": facts.get("guidance_scale"),
        "Seed": text["row_seed"],
        "Size": text["size"],
        "Model": str(model).rstrip("/").rpartition("/")[2],
        "Denoising strength": facts.get("pipeline_kwargs", {}).get("strength"),
        "RNG": "CPU",
        "Version": f"tts-vision {version_of('tts-vision')}",
    }
    lines = [text["prompt"]]
    if negative := facts.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """A value in quotes where it has characters that separate pairs."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text
