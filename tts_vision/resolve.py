"""From what a search is told to the objects that it runs with, with every check that needs no computing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tts_vision.config import ModelOptions, RunConfig, Spec
from tts_vision.context import SearchContext
from tts_vision.errors import (
    CapabilityError,
    ConfigError,
    PipelineError,
    TTSVisionError,
    UnknownNameError,
    VerifierError,
)
from tts_vision.ledger import Budget
from tts_vision.parameters import parameters, validate
from tts_vision.registry import Entry, entries, lookup
from tts_vision.scoring import FunctionVerifier
from tts_vision.types import Prompt, Sampler, Verifier

HUB_LOADER = "diffusers"


@dataclass(frozen=True)
class Live:
    """Python objects that take the place of names in a configuration."""

    pipe: Any = None
    algorithm: Callable[..., Any] | None = None
    verifier: Any = None


@dataclass(frozen=True)
class Setup:
    """What a search runs with.

    Attributes:
        config: What it was told, with every parameter of the algorithm spelled out.
        sampler: The generator.
        verifier: What scores.
        algorithm: The search itself, with its parameters.
        prompt: What to generate.
        budget: The limits.
    """

    config: RunConfig
    sampler: Sampler
    verifier: Verifier
    algorithm: Callable[[SearchContext], Any]
    prompt: Prompt
    budget: Budget


def spell_out(config: RunConfig, live: Live | None = None) -> RunConfig:
    """The configuration with every parameter of its algorithm, converted and checked.

    Raises:
        ConfigError: If a parameter is unknown or has the wrong type, or the budget cannot be read.
    """
    entry = find_algorithm(config, live)
    given = validate(entry.target, config.algorithm_params, f"algorithm {entry.name!r}")
    defaults = {p.name: p.default for p in parameters(entry.target).values()}
    Budget.parse(config.budget)
    return config.model_copy(update={"algorithm_params": {**defaults, **given}})


def prepare(config: RunConfig, live: Live | None = None) -> Setup:
    """Loads what a configuration names, and checks that it fits together.

    Raises:
        ConfigError: If something is unknown or cannot be used as given.
        CapabilityError: If the sampler cannot do what the algorithm needs.
        PipelineError: If the model cannot be loaded or driven.
        VerifierError: If the verifier cannot be loaded.
    """
    live = live or Live()
    if live.pipe is not None and config.model.startswith("<") and config.model_options != ModelOptions():
        raise ConfigError(
            f"Model options apply to a model that is loaded by name but got {config.model_options!r} "
            "beside a live pipeline; set it up before you pass it."
        )
    config = spell_out(config, live)
    entry = find_algorithm(config, live)
    verifier_entry = None if live.verifier is not None else find_verifier(config.verifier)
    sampler = find_sampler(config, live, stochastic=entry.wants_stochastic)
    _check_capabilities(entry, sampler)
    verifier = load_verifier(config.verifier, verifier_entry, live.verifier)
    if sampler.modality not in verifier.accepts:
        raise ConfigError(
            f"Verifier {verifier.name!r} scores {' and '.join(sorted(verifier.accepts))} but "
            f"{sampler.name!r} makes {sampler.modality}; choose another verifier ('tts-vision list "
            "verifiers' shows what each scores)."
        )
    prompt = Prompt(config.prompt, config.prompt_metadata)
    sample = SearchContext(sampler, verifier, prompt, seed=config.seed).cost()
    values = validate(entry.target, config.algorithm_params, f"algorithm {entry.name!r}")
    return Setup(
        config=config,
        sampler=sampler,
        verifier=verifier,
        algorithm=partial(entry.target, **values),
        prompt=prompt,
        budget=Budget.parse(config.budget).resolve(sample),
    )


def find_algorithm(config: RunConfig, live: Live | None = None) -> Entry:
    """The algorithm that a configuration names, or the live one in its place."""
    if live is None or live.algorithm is None:
        _refuse_live(
            "algorithm", config.algorithm, "search(..., algorithm=FUNCTION, output=FOLDER, resume=True)"
        )
        return lookup("algorithm", config.algorithm)
    known = (entry for entry in entries("algorithm") if entry.target is live.algorithm)
    return next(known, Entry("algorithm", config.algorithm, live.algorithm))


def find_sampler(config: RunConfig, live: Live, *, stochastic: bool) -> Sampler:
    """The sampler of the model that a configuration names, or of the live pipeline in its place.

    Args:
        config: What the search is told.
        live: A `Sampler`, or any pipeline that a registered sampler accepts.
        stochastic: Whether steps add noise where the configuration leaves it open.
    """
    pipe = load_model(config) if live.pipe is None else live.pipe
    options = config.sampler_options
    if isinstance(pipe, Sampler):
        if options != type(options)():
            raise ConfigError(
                f"Sampler options must be given to a sampler when it is made but got {options!r} beside "
                f"the sampler {pipe.name!r}; leave out pipeline_kwargs and sampler_options."
            )
        return pipe
    if options.stochastic is None:
        options = options.model_copy(update={"stochastic": stochastic})
    samplers = entries("sampler")
    for entry in samplers:
        if entry.target.accepts(pipe):  # type: ignore[attr-defined]
            sampler: Sampler = entry.target(pipe, options=options)
            return sampler
    raise PipelineError(
        "A pipeline must be one that a sampler drives "
        f"({', '.join(entry.name for entry in samplers) or 'none here'}): a diffusers text-to-image or "
        "text-to-video pipeline with a scheduler, or an object with the methods of tts_vision.Sampler; "
        f"but got {type(pipe).__module__}.{type(pipe).__qualname__}."
    )


def load_model(config: RunConfig) -> Any:
    """The pipeline of the model that a configuration names.

    Raises:
        ConfigError: If the name is of no model.
        PipelineError: If it cannot be loaded.
    """
    _refuse_live("model", config.model, "search(pipe, ..., output=FOLDER, resume=True)")
    entry = _find_model(config.model)
    try:
        return entry.target(config.model, options=config.model_options)
    except TTSVisionError:
        raise
    except Exception as error:
        raise PipelineError(
            f"Model {config.model!r} must load but: {_first_line(error)}; check the name, the folder or the "
            "network."
        ) from error


def _find_model(name: str) -> Entry:
    """A registered model; anything else that may be a folder or an id on the hub goes to diffusers."""
    if Path(name).is_dir():
        return lookup("model", HUB_LOADER)
    try:
        return lookup("model", name)
    except UnknownNameError as error:
        parts = name.split("/")
        if len(parts) == 2 and all(parts) and "@" not in name and not name.startswith((".", "~")):
            return lookup("model", HUB_LOADER)
        raise UnknownNameError(
            f"{error} A folder with a diffusers pipeline, or a hub id 'owner/name', is a model too."
        ) from None


def find_verifier(text: str) -> tuple[Entry, dict[str, str]]:
    """The plugin that a verifier's spec names, and the parameters in it.

    Raises:
        ConfigError: If there is none, or a parameter is not one of its own.
    """
    _refuse_live("verifier", text, "search(..., verifier=VERIFIER, output=FOLDER, resume=True)")
    spec = Spec.parse(text)
    entry = lookup("verifier", spec.name)
    if _is_plugin(entry.target):
        validate(entry.target, spec.params, f"verifier {entry.name!r}")
    return entry, dict(spec.params)


def load_verifier(text: str, found: tuple[Entry, dict[str, str]] | None, live: Any = None) -> Verifier:
    """The verifier that was found by name, or the live one in its place.

    Args:
        text: What it is called in messages.
        found: What `find_verifier` found.
        live: A `Verifier`, or a plain function ``f(media, prompts) -> floats``.
    """
    if found is None:
        return _as_verifier(live, text)
    entry, params = found
    if not _is_plugin(entry.target):
        return _as_verifier(entry.target, text)
    values = validate(entry.target, params, f"verifier {entry.name!r}")
    if not inspect.isclass(entry.target) and _takes_media(entry.target):
        verifier = FunctionVerifier(partial(entry.target, **values))
        verifier.name = entry.target.__name__
        return verifier
    try:
        return _as_verifier(entry.target(**values), text)
    except TTSVisionError:
        raise
    except Exception as error:
        raise VerifierError(
            f"Verifier {text!r} must load but: {_first_line(error)}; check its parameters and its weights."
        ) from error


def _as_verifier(value: Any, text: str) -> Verifier:
    if isinstance(value, Verifier):
        return value
    if callable(value):
        return FunctionVerifier(value)
    raise ConfigError(
        "A verifier must be a name, an object with name, accepts and score, or a function f(images, "
        f"prompts) -> floats, but {text} is {type(value).__qualname__}; give one of these."
    )


def _is_plugin(target: Any) -> bool:
    """Whether `target` is a class or function rather than a finished verifier."""
    return inspect.isclass(target) or inspect.isroutine(target)


def _takes_media(function: Callable[..., Any]) -> bool:
    """Whether a function scores by itself, rather than makes a verifier."""
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    return any(
        kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD} for kind in kinds
    )


def _check_capabilities(entry: Entry, sampler: Sampler) -> None:
    missing = sorted(entry.needs - sampler.capabilities)
    if not missing:
        return
    noise = {"stochastic", "step_noise"}.intersection(missing)
    remedy = "set stochastic=True (--stochastic)" if noise else "choose another algorithm or model"
    raise CapabilityError(
        f"Algorithm {entry.name!r} needs a sampler with {', '.join(sorted(entry.needs))} but "
        f"{sampler.name!r} lacks {', '.join(missing)}; {remedy}."
    )


def _refuse_live(key: str, text: str, remedy: str) -> None:
    if text.startswith("<"):
        raise ConfigError(
            f"A search started from Python with a live {key} cannot be started from its configuration "
            f"alone, but {key} is {text!r}; call {remedy} with the same object."
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n", 1)[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
