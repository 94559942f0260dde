"""How a run is made again elsewhere: as a command, and as a few lines of Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, override
from tts_vision.errors import TTSVisionError
from tts_vision.resolve import fill_defaults

FROM_FILE = "tts-vision generate --config config.yaml"
"""Makes a run again from its file, for settings that flags cannot say."""


def command(config: RunConfig) -> str:
    """The command line that makes a run again: with all of its settings, where flags can say them."""
    sets = list(_assignments(config))
    values: dict[str, Any] = {
        "prompt": config.prompt,
        "model": config.model,
        "algorithm": config.algorithm,
        "verifier": config.verifier,
        "holdout_verifier": config.holdout_verifier,
        "budget": config.budget,
        "seed": config.seed,
        "target": config.target,
    }
    try:
        same = fill_defaults(RunConfig(**override(values, sets))).hash == config.hash
    except TTSVisionError:
        same = False
    if not same or config.prompt.startswith("-"):
        return FROM_FILE
    words = [
        "tts-vision",
        "generate",
        config.prompt,
        "--model",
        config.model,
        "--algorithm",
        config.algorithm,
    ]
    words += ["--verifier", config.verifier, "--budget", config.budget, "--seed", str(config.seed)]
    words += [] if config.holdout_verifier is None else ["--holdout-verifier", config.holdout_verifier]
    words += [] if config.target is None else ["--until", str(config.target)]
    for each in sets:
        words += ["--set", each]
    return shlex.join(words)


def snippet(config: RunConfig, best: str) -> str:
    """A Python program that makes a run again.

    Args:
        config: Its settings.
        best: Name of the file that the best sample is written to.
    """
    prompt = repr(config.prompt)
    if config.prompt_metadata:
        prompt = f"tts_vision.Prompt({prompt}, {config.prompt_metadata!r})"
    arguments = [repr(config.model), prompt]
    named: dict[str, Any] = {
        "algorithm": config.algorithm,
        "verifier": config.verifier,
        "holdout_verifier": config.holdout_verifier,
        "budget": config.budget,
        "seed": config.seed,
        "target": config.target,
        "algorithm_params": _parameters(config) or None,
        "max_batch": config.max_batch,
    }
    arguments += [f"{name}={value!r}" for name, value in named.items() if value is not None]
    for name, given, default in (
        ("sampler_options", config.sampler_options, SamplerOptions()),
        ("model_options", config.model_options, ModelOptions()),
    ):
        changed = _changed(given.model_dump(), default.model_dump())
        if changed:
            inside = ", ".join(f"{key}={value!r}" for key, value in changed.items())
            arguments.append(f"{name}=tts_vision.{type(default).__name__}({inside})")
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"import tts_vision\n\nresult = tts_vision.search(\n{lines})\nresult.best.save({best!r})\n"


def _assignments(config: RunConfig) -> Iterator[str]:
    """The settings that have no flag here, as ``--set`` reads them."""
    if config.prompt_metadata:
        yield f"prompt_metadata={_text(config.prompt_metadata)}"
    groups: dict[str, Mapping[str, Any]] = {
        "algorithm": _parameters(config),
        "model": _changed(config.model_options.model_dump(), ModelOptions().model_dump()),
        "sampler": _changed(config.sampler_options.model_dump(), SamplerOptions().model_dump()),
    }
    pipeline = dict(groups["sampler"]).pop("pipeline_kwargs", {})
    groups["sampler"] = {k: v for k, v in groups["sampler"].items() if k != "pipeline_kwargs"}
    for group, values in {**groups, "pipeline": pipeline}.items():
        for name, value in values.items():
            yield f"{group}.{name}={_text(value)}"


def _parameters(config: RunConfig) -> dict[str, Any]:
    """The parameters of the algorithm that are not at their defaults."""
    try:
        defaults = fill_defaults(config.model_copy(update={"algorithm_params": {}})).algorithm_params
    except TTSVisionError:  # one of them must be given
        return dict(config.algorithm_params)
    return {k: v for k, v in config.algorithm_params.items() if k not in defaults or defaults[k] != v}


def _changed(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value != default[name]}


def _text(value: Any) -> str:
    """A value as `tts_vision.config.override` reads it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
