"""From what a search is told to the objects that it runs with, with every check that needs no computing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, Spec
from tts_vision.errors import (
    CapabilityError,
    ConfigError,
    PipelineError,
    TTSVisionError,
    UnknownNameError,
    VerifierError,
)
from tts_vision.features import default_features
from tts_vision.gradients import require_gradients
from tts_vision.inputs import check_inputs
from tts_vision.ledger import Budget
from tts_vision.parameters import parameters, validate
from tts_vision.registry import Entry, entries, entry_of, lookup, registered
from tts_vision.sampler import Sampler
from tts_vision.types import Cost, Prompt
from tts_vision.verifier import FunctionVerifier, Verifier, as_verifier

HUB_LOADER = "diffusers"


@dataclass(frozen=True)
class Live:
    """Python objects that take the place of names in a configuration."""

    pipe: Any = None
    algorithm: Callable[..., Any] | None = None
    verifier: Any = None
    holdout: Any = None


@dataclass(frozen=True)
class Setup:
    """The objects of a search.

    Attributes:
        config: The settings, with every parameter of the algorithm filled in.
        sampler: The generator.
        verifier: The verifier that guides the search.
        holdout: The verifier that judges the outcome and never guides the search, if any.
        algorithm: The search algorithm.
        params: Its parameters; that of its size is absent where the budget decides.
        size: Name of the parameter that sizes it, if it declares one.
        prompt: The prompt.
        budget: The limits.
    """

    config: RunConfig
    sampler: Sampler
    verifier: Verifier
    holdout: Verifier | None
    algorithm: Callable[..., Any]
    params: dict[str, Any]
    size: str
    prompt: Prompt
    budget: Budget

    def open_sampler(self, name: str) -> Sampler:
        """The sampler of another model, for `SearchContext.using`.

        Args:
            name: As ``--model`` takes it; arguments of the pipeline's call may follow a question mark, as in
                ``editor?strength=0.6&num_inference_steps=20``.

        Raises:
            ConfigError: If the arguments cannot be read.
        """
        model, arguments = _with_arguments(name)
        options = SamplerOptions(pipeline_kwargs=arguments)
        update = {"model": model, "model_options": ModelOptions(), "sampler_options": options}
        return find_sampler(self.config.model_copy(update=update), Live(), stochastic=False)


def fill_defaults(config: RunConfig, live: Live | None = None) -> RunConfig:
    """The configuration with every parameter of its algorithm, converted and checked.

    A size that is left open, for the budget to decide, is None.

    Raises:
        ConfigError: If a parameter is unknown or has the wrong type, or the budget cannot be read.
    """
    entry = find_algorithm(config, live)
    given = _given(entry, config)
    defaults = {p.name: p.default for p in parameters(entry.target).values()}
    Budget.parse(config.budget)
    values = {**defaults, **given}
    if entry.size and entry.size not in given:
        values[entry.size] = None  # the budget decides
    if values.get("features", "") is None:
        values["features"] = default_features(config.model)
    return config.model_copy(update={"algorithm_params": values})


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
    config = fill_defaults(config, live)
    entry = find_algorithm(config, live)
    guide = None if live.verifier is not None else find_verifier(config.verifier)
    held_out = _find_holdout(config, live)
    sampler = find_sampler(config, live, stochastic=entry.wants_stochastic)
    _check_capabilities(entry, sampler)
    verifier = as_verifier(live.verifier, config.verifier) if guide is None else load_verifier(guide)
    holdout = None if held_out is None else load_verifier(held_out)
    if live.holdout is not None:
        holdout = as_verifier(live.holdout, str(config.holdout_verifier))
    for judge in (verifier, holdout):
        if judge is not None:
            _check_modality(judge, sampler)
            if judge is verifier and "differentiable" in entry.needs:
                require_gradients(verifier, f"algorithm {entry.name!r}")
            if judge is verifier:
                _check_questions(entry, verifier)
            judge.load()
    _check_target(config, verifier)
    calls = sum(verifier.calls(1).values())
    prompt = Prompt(config.prompt, config.prompt_metadata)
    sample = sampler.cost(sampler.condition_of(prompt), 0, sampler.num_steps)
    return Setup(
        config=config,
        sampler=sampler,
        verifier=verifier,
        holdout=holdout,
        algorithm=entry.target,
        params=_given(entry, config),
        size=entry.size,
        prompt=prompt,
        budget=Budget.parse(config.budget).resolve(sample + Cost(decodes=1, verifier_calls=calls)),
    )


def _with_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """A model's name, and the arguments of its call that follow it."""
    model, mark, text = name.partition("?")
    pairs = [part.partition("=") for part in text.split("&")] if mark else []
    if any(not key or not equals for key, equals, _ in pairs):
        raise ConfigError(
            "Arguments of another model's call are written 'MODEL?key=value&key=value' but got "
            f"{name!r}; change what follows the question mark."
        )
    return model, {key: json.loads(value) if _is_json(value) else value for key, _, value in pairs}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _given(entry: Entry, config: RunConfig) -> dict[str, Any]:
    """The parameters of the algorithm, checked; without its size where that is left open."""
    given = {k: v for k, v in config.algorithm_params.items() if k != entry.size or v is not None}
    return validate(entry.target, given, f"algorithm {entry.name!r}")


def _check_target(config: RunConfig, verifier: Verifier) -> None:
    if config.target == "satisfied" and not verifier.checks_demands:
        raise ConfigError(
            f"A search until 'satisfied' needs a verifier that checks demands but {verifier.name!r} gives "
            "scores alone; use checklist, detector or another one that does, or give a score as target."
        )
    if config.target not in (None, "satisfied") and verifier.settles:
        raise ConfigError(
            f"A target needs scores that stay as they are but those of {verifier.name!r} compare samples "
            f"with each other; use a single verifier or leave out target={config.target:g}."
        )


def find_algorithm(config: RunConfig, live: Live | None = None) -> Entry:
    """The algorithm that a configuration names, or the live one in its place."""
    if live is None or live.algorithm is None:
        _refuse_live(
            "algorithm", config.algorithm, "search(..., algorithm=FUNCTION, output=FOLDER, resume=True)"
        )
        return lookup("algorithm", config.algorithm)
    return entry_of("algorithm", live.algorithm, config.algorithm)


def find_sampler(config: RunConfig, live: Live, *, stochastic: bool) -> Sampler:
    """The sampler of the model that a configuration names, or of the live pipeline in its place.

    Args:
        config: What the search is told.
        live: A `Sampler`, or any pipeline that a registered sampler accepts.
        stochastic: Whether steps add noise where the configuration leaves it open.
    """
    check_inputs(config)
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
            options.refuse_unread(getattr(entry.target, "own_options", frozenset()), entry.name)
            sampler: Sampler = entry.target(pipe, options=options)
            return sampler
    raise PipelineError(
        "A pipeline must be one that a sampler drives "
        f"({', '.join(entry.name for entry in samplers) or 'none here'}): a diffusers text-to-image or "
        "text-to-video pipeline with a scheduler, or a subclass of tts_vision.plugins.Sampler; "
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
    head, colon, _ = name.partition(":")
    if colon and registered("model", head) is not None:
        return lookup("model", head)  # it reads the rest of its name itself
    try:
        return lookup("model", name)
    except UnknownNameError as error:
        parts = name.split("/")
        if len(parts) == 2 and all(parts) and "@" not in name and not name.startswith((".", "~")):
            return lookup("model", HUB_LOADER)
        raise UnknownNameError(
            f"{error} A folder with a diffusers pipeline, or a hub id 'owner/name', is a model too."
        ) from None


@dataclass(frozen=True)
class VerifierSpec:
    """A verifier that was found by name and not made yet.

    Attributes:
        text: How it was written.
        entry: The plugin.
        params: Its parameters, checked.
        members: The verifiers it is made of.
    """

    text: str
    entry: Entry
    params: dict[str, Any]
    members: tuple[VerifierSpec, ...] = ()


def find_verifier(text: str) -> VerifierSpec:
    """The plugin that a verifier's spec names, its parameters and members.

    Raises:
        ConfigError: If there is none, a parameter is not one of its own, or members are missing or too many.
    """
    _refuse_live("verifier", text, "search(..., verifier=VERIFIER, output=FOLDER, resume=True)")
    return _find_spec(Spec.parse(text))


def _find_spec(spec: Spec) -> VerifierSpec:
    entry = lookup("verifier", spec.name)
    if not _is_plugin(entry.target):
        return VerifierSpec(str(spec), entry, dict(spec.params))
    takes_members = "members" in inspect.signature(entry.target).parameters
    if takes_members != bool(spec.members):
        rule, remedy = (
            ("is made of other verifiers", f"name them: '{spec.name}(clip_score, pickscore)'")
            if takes_members
            else ("has no members", f"write '{spec.name}' without parentheses")
        )
        raise ConfigError(f"Verifier {spec.name!r} {rule} but got {str(spec)!r}; {remedy}.")
    values = validate(entry.target, spec.params, f"verifier {entry.name!r}")
    return VerifierSpec(str(spec), entry, values, tuple(map(_find_spec, spec.members)))


def load_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier that was found by name; its model loads on first use, or by `Verifier.load`.

    Raises:
        VerifierError: If it cannot be made.
    """
    target = spec.entry.target
    if not _is_plugin(target):
        return as_verifier(target, spec.text)
    if not inspect.isclass(target) and _takes_media(target):
        return FunctionVerifier(partial(target, **spec.params), target.__name__)
    members = tuple(map(load_verifier, spec.members))
    try:
        made = target(members, **spec.params) if members else target(**spec.params)
        return as_verifier(made, spec.text)
    except TTSVisionError:
        raise
    except Exception as error:
        raise VerifierError(
            f"Verifier {spec.text!r} must load but: {_first_line(error)}; check its parameters and its "
            "weights."
        ) from error


@lru_cache(maxsize=8)
def _kept_verifier(text: str) -> Verifier:
    verifier = load_verifier(find_verifier(text))
    verifier.load()
    return verifier


def loaded_verifier(text: str, sampler: Sampler) -> Verifier:
    """A further verifier of a search, loaded; the last ones are kept, so that many searches load each once.

    Args:
        text: Its spec.
        sampler: Makes the samples that it is to score.

    Raises:
        ConfigError: If there is none, or it does not score the samples of the sampler.
        VerifierError: If it cannot be loaded.
    """
    find_verifier(text)  # refuses code that is not trusted, also where it is kept
    verifier = _kept_verifier(text)
    _check_modality(verifier, sampler)
    return verifier


def _find_holdout(config: RunConfig, live: Live) -> VerifierSpec | None:
    """The verifier that is held out, if one is named."""
    if config.holdout_verifier is None:
        return None
    guides = config.verifier == config.holdout_verifier and live.verifier is live.holdout
    if guides or _mentions(config.verifier, config.holdout_verifier):
        raise ConfigError(
            f"A holdout must not guide the search but {config.holdout_verifier!r} is the verifier "
            f"{config.verifier!r} or a member of it; name another one."
        )
    return None if live.holdout is not None else find_verifier(config.holdout_verifier)


def _mentions(text: str, other: str) -> bool:
    """Whether a verifier's spec, at any depth, has `other` as a member."""
    if text.startswith("<") or other.startswith("<"):
        return False
    return any(
        member == Spec.parse(other) or _mentions(str(member), other) for member in Spec.parse(text).members
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
    missing = entry.missing(sampler.capabilities)
    if not missing:
        return
    noise = {"stochastic", "step_noise"}.issuperset(missing)
    remedy = "set stochastic=True (--stochastic)" if noise else "choose another algorithm or model"
    raise CapabilityError(
        f"Algorithm {entry.name!r} needs a sampler with {', '.join(sorted(entry.needs))} but "
        f"{sampler.name!r} lacks {', '.join(missing)}; {remedy}."
    )


def _check_questions(entry: Entry, verifier: Verifier) -> None:
    missing = sorted(entry.asks - verifier.questions)
    if missing:
        raise CapabilityError(
            f"Algorithm {entry.name!r} needs a verifier that answers {' and '.join(sorted(entry.asks))} but "
            f"{verifier.name!r} does not answer {' and '.join(missing)}; use a step verifier such as parm, "
            "or another algorithm."
        )


def _check_modality(verifier: Verifier, sampler: Sampler) -> None:
    if sampler.modality in verifier.accepts:
        return
    each = ", or frame_mean(NAME) to score each frame, last_frame(NAME) the last" * (
        sampler.modality == "video"
    )
    raise ConfigError(
        f"Verifier {verifier.name!r} scores {' and '.join(sorted(verifier.accepts))} but "
        f"{sampler.name!r} makes {sampler.modality}; choose another verifier ('tts-vision list "
        f"verifiers' shows what each scores){each}."
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
