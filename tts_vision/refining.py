"""Refine: candidates around a chosen result or around any image, of which the best is kept.

A refinement is a search by the algorithm ``variations``. A result of the model itself is made again from its
lineage and sent back by a share of its trajectory; any other image is encoded, or given to a pipeline that
edits.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tts_vision.candidates import Candidate
from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, is_live_name, live_name
from tts_vision.errors import ConfigError
from tts_vision.files import CONFIG, TRACE, inside, is_file
from tts_vision.folders import check_unchanged, find_began, has_result, read_config
from tts_vision.inputs import with_inputs
from tts_vision.media import data_url, is_data_url, read_text
from tts_vision.metadata import prompt_in
from tts_vision.moves import from_description
from tts_vision.resolve import Live, find_algorithm, load_model
from tts_vision.results import Result, load_result
from tts_vision.runner import Observer, run
from tts_vision.steering import ORIGINAL, Steering
from tts_vision.trace import Ancestor, Event, answers, lineage, read_trace
from tts_vision.trust import allowing, check_settings, is_mine, named_in, trusting

ALGORITHM = "variations"


def refine(
    source: Path | str | Image.Image,
    number: int | None = None,
    *,
    prompt: str | None = None,
    n: int = 8,
    strength: float | None = None,
    model: Any = None,
    verifier: Any = None,
    budget: str | None = None,
    seed: int = 0,
    output: Path | str | None = None,
    pipeline_kwargs: Mapping[str, Any] | None = None,
    model_options: ModelOptions | None = None,
    trust: bool = False,
    resume: bool = False,
    max_batch: int | None = None,
    progress: Observer | None = None,
    steering: Steering | None = None,
) -> Result:
    """Makes candidates around a sample, or an image, and keeps the best of them, which may be the original.

    Args:
        source: The result folder of a search, finished or not; or an image, or a file with one.
        number: The sample of the search, by default its best.
        prompt: What it should show; by default that of the search, or in the metadata of the image.
        n: Candidates beside the original.
        strength: How far they may go from it, from 0 to 1; by default 0.5. Passed to the call of a pipeline
            that has such an argument.
        model: The pipeline, or its name; by default that of the search. Of another one, such as an edit
            pipeline, the stored image of the sample is refined.
        verifier: As in `tts_vision.search`; by default that of the search.
        budget: By default enough for all candidates.
        seed: Root seed, for an image; a sample of a search keeps that of its search.
        output: A new folder to keep everything in.
        pipeline_kwargs: Further arguments of the pipeline's call.
        model_options: How a model given by name is loaded.
        trust: Whether to run code and ask endpoints that the folder's configuration names, as in
            `tts_vision.resume`.
        resume: Whether to go on if `output` holds this same search, unfinished.
        max_batch: As in `tts_vision.search`.
        progress: Called with the context and each event as it happens.
        steering: As in `tts_vision.search`.

    Returns:
        The result; `original` finds the original in it.

    Raises:
        TTSVisionError: If something cannot be used as given.
    """
    live = Live(
        pipe=None if model is None or isinstance(model, (str, Path)) else model,
        verifier=None if verifier is None or isinstance(verifier, str) else verifier,
    )
    settings = {
        "model": None if model is None else str(model) if live.pipe is None else live_name(model),
        "verifier": verifier if live.verifier is None else live_name(verifier),
        "budget": budget,
        "model_options": model_options,
        "sampler_options": None
        if pipeline_kwargs is None
        else SamplerOptions(pipeline_kwargs=dict(pipeline_kwargs)),
        "max_batch": max_batch,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if isinstance(source, Image.Image) or not is_search(Path(source)):
        image = data_url(source) if isinstance(source, Image.Image) else str(source)
        if number is not None:
            raise ConfigError(f"A sample has a number but an image has none, and got {number}; leave it out.")
        config = of_image(image, prompt, n=n, strength=strength, seed=seed, settings=settings)
        allowed: AbstractContextManager[None] = nullcontext()
    else:
        root = Path(source)
        with trusting(root, read_config(root), trust=trust):
            config = of_result(root, number, prompt=prompt, n=n, strength=strength, settings=settings)
        allowed = trusted(root, config, trust=trust)
    with allowed:
        config, live = with_strength(config, live)
        return run(config, live, output=output, resume=resume, progress=progress, steering=steering)


def original(result: Result) -> Candidate | None:
    """The original among the samples of a refinement; None before it was scored."""
    uid = original_of(result.trace)
    return next((sample for sample in result.population if sample.uid == uid), None)


def original_of(events: Iterable[Event]) -> int | None:
    """The particle that the others of a search are variations of, if it is a refinement."""
    noted = (answer.value for answer in answers(events, "note"))
    return next((int(value[ORIGINAL]) for value in noted if ORIGINAL in value), None)


def is_search(path: Path) -> bool:
    """Whether a path is the folder of a search rather than an image."""
    return is_file(path / CONFIG)


def of_image(
    image: str, prompt: str | None, *, n: int, strength: float | None, seed: int, settings: Mapping[str, Any]
) -> RunConfig:
    """The refinement of an image.

    Args:
        image: A file, or text that `tts_vision.media.data_url` wrote.
        prompt: What it should show; None for what its metadata says.
        n: Candidates beside it.
        strength: How far they may go from it; None for the default.
        seed: Root seed.
        settings: Further settings of the search.

    Raises:
        ConfigError: If something cannot be used as given.
    """
    if prompt is None and not is_data_url(image):
        prompt = prompt_in(read_text(Path(image).expanduser()))
    if prompt is None:
        raise ConfigError(
            "A refined image needs a prompt but got none, and its metadata has none; say what it should show."
        )
    params = {"image": image, "n": n, "strength": strength}
    given = {"prompt": prompt, "seed": seed, "budget": f"{n + 1}x", **settings}
    return RunConfig(**given, algorithm=ALGORITHM, algorithm_params=params)


def of_result(
    root: Path,
    number: int | None,
    *,
    prompt: str | None,
    n: int,
    strength: float | None,
    settings: Mapping[str, Any],
) -> RunConfig:
    """The refinement of a sample of a search, finished or not.

    The sample is made again from its lineage where the same model can do that; otherwise its stored image is
    refined.

    Args:
        root: The folder of the search.
        number: The sample; None for the best.
        prompt: What it should show; None for what the search asked for.
        n: Candidates beside it.
        strength: How far they may go from it; None for the default.
        settings: Settings that differ from those of the search.

    Raises:
        ConfigError: If there is no such sample, or it can be refined in neither way.
    """
    own = read_config(root)
    check_unchanged(root, own, find_began(root))
    own = with_inputs(own, root)
    events = read_trace(root / TRACE)
    uid = _best(root) if number is None else number
    try:
        chain = lineage(events, uid)
    except KeyError:
        raise ConfigError(
            f"A sample of the search in {str(root)!r} is refined but {uid} is none of its particles; choose "
            "another."
        ) from None
    changes: dict[str, Any] = {"algorithm": ALGORITHM, "target": None, "holdout_verifier": None}
    if prompt is not None and prompt != own.prompt:
        changes |= {"prompt": prompt, "prompt_metadata": {}}
    params: dict[str, Any] = {"n": n, "strength": strength}
    hindrance = _hindrance(chain, own, settings)
    if not hindrance:
        text = json.dumps([link.model_dump(exclude_none=True) for link in chain])
        params |= {"lineage": text, "made_for": own.prompt if "prompt" in changes else ""}
        options = own.sampler_options.model_copy(update={"stochastic": _stochastic(own)})
        changes |= {"sampler_options": options, "budget": f"{n + len(chain) + 1}x"}
    else:
        params["image"] = str(_stored(root, events, uid, hindrance))
        changes["budget"] = f"{n + 1}x"
    if settings.get("model", own.model) != own.model:
        changes |= {"model_options": ModelOptions(), "sampler_options": SamplerOptions()}
    elif (given := settings.get("sampler_options")) is not None:
        call = {**own.sampler_options.pipeline_kwargs, **given.pipeline_kwargs}
        named = {name: getattr(given, name) for name in given.model_fields_set}
        options = own.sampler_options.model_copy(update={**named, "pipeline_kwargs": call})
        settings = {**settings, "sampler_options": options}
    return RunConfig(**{**dict(own), **changes, **settings, "algorithm_params": params})


def with_strength(config: RunConfig, live: Live) -> tuple[RunConfig, Live]:
    """The refinement of an image with its strength where the pipeline's call takes it: in the call.

    Args:
        config: A refinement.
        live: Objects in the place of names.

    Returns:
        The settings, and the objects with the model loaded where it was asked.
    """
    params = config.algorithm_params
    if not params.get("image") or params.get("strength") is None:
        return config, live
    live = live if live.pipe is not None else replace(live, pipe=load_model(config))
    if "strength" not in inspect.signature(type(live.pipe).__call__).parameters:
        return config, live
    options = config.sampler_options
    call = {"strength": params["strength"], **options.pipeline_kwargs}
    changes = {
        "algorithm_params": {**params, "strength": None},
        "sampler_options": options.model_copy(update={"pipeline_kwargs": call}),
    }
    return config.model_copy(update=changes), live


@contextmanager
def trusted(root: Path, config: RunConfig, *, trust: bool) -> Iterator[None]:
    """Acts on the settings of a search that is refined as far as they are trusted.

    Args:
        root: The folder of that search.
        config: The refinement; what it does not share with the search was named by the user.
        trust: Whether the user trusts all of them.

    Raises:
        ConfigError: If they ask for more.
    """
    own = read_config(root)
    if trust or is_mine(root, own):
        yield
        return
    named = [text for text in (config.model, config.verifier) if text not in (own.model, own.verifier)]
    with allowing({*named_in(named), str(config.algorithm_params.get("image"))}):
        check_settings(config, f"the configuration in {str(root)!r}")
        yield


def _best(root: Path) -> int:
    if not has_result(root):
        raise ConfigError(
            f"The best sample is that of a search with a result but {str(root)!r} has none yet; name a "
            "sample by its number."
        )
    return load_result(root).best.uid


def _hindrance(chain: Sequence[Ancestor], own: RunConfig, settings: Mapping[str, Any]) -> str:
    """Why a particle cannot be made again from its lineage by the model of a refinement; empty if it can."""
    if settings.get("model", own.model) != own.model:
        return f"it was made by another model, {own.model!r}"
    if {"model_options", "sampler_options"} & settings.keys():
        return "its search had other settings of the model"
    if own.sampler_options.stochastic is None and is_live_name(own.algorithm):
        return "whether its steps added noise is known to a live algorithm alone"
    for link in chain:
        if link.sampler:
            return f"it was made by another generator, {link.sampler!r}"
        if link.parent is not None and from_description(link.move or {"name": link.origin}).gradient_steps:
            return "it was made with gradients"
        if {"images", "embeddings"} & (link.condition or {}).keys():
            return "it was made from an image or an embedding of its own"
    return ""


def _stochastic(own: RunConfig) -> bool | None:
    """Whether the steps of a search add noise; its algorithm decides where its settings do not."""
    given = own.sampler_options.stochastic
    return find_algorithm(own).wants_stochastic or None if given is None else given


def _stored(root: Path, events: Sequence[Event], uid: int, hindrance: str) -> Path:
    """The file of a finished sample."""
    for answer in answers(events, "score"):
        for each, name in zip(answer.uids, answer.files):
            if each == uid and name and name.endswith(".png"):
                return inside(root, name).resolve()
    raise ConfigError(
        f"A sample is made again from its lineage, or its stored image is refined, but {uid} has no stored "
        f"image and {hindrance}; choose another one."
    )
