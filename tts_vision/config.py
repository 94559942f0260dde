"""What a search is told: one object, to and from YAML and flags, whose hash names the run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tts_vision.errors import ConfigError, did_you_mean
from tts_vision.parameters import convert, is_finite, read_value
from tts_vision.pipeline_arguments import TEXT_ARGUMENT, broken_rule
from tts_vision.plain_values import is_live, plain
from tts_vision.plain_values import is_live_name as is_live_name
from tts_vision.plain_values import live_name as live_name
from tts_vision.registry import default_model, known_names, registered_model
from tts_vision.specs import Spec
from tts_vision.yaml_files import dump_yaml, group_of, read_settings

# what the first word of a dotted override stands for
SECTIONS: dict[str, tuple[str, ...]] = {
    "algorithm": ("algorithm_params",),
    "model": ("model_options",),
    "sampler": ("sampler_options",),
    "pipeline": ("sampler_options", "pipeline_kwargs"),
}
_PREVIEW = re.compile(r"decode|expected|complete|rollout:[1-9]\d{0,3}")


class _Settings(BaseModel):
    """A group of settings whose mistakes are told as one clear message."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    owner: ClassVar[str]

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None


class ModelOptions(_Settings):
    """How a model is loaded.

    Attributes:
        dtype: Precision of the weights; by default float32 on a CPU and half precision elsewhere.
        device: Where it runs; by default the accelerator, if there is one.
        offload: What waits on the CPU while it is not in use.
        device_map: How diffusers spreads a model over several devices, such as "balanced", in place of
            `device` and `offload`.
        attention: The attention back end, such as "xformers"; the model's own by default.
        scheduler: Name of a diffusers scheduler class to use in place of the model's own.
        lora: Paths or ids of LoRA weights.
        preview_vae: Path or id of a tiny autoencoder that decodes previews.
        compile: Whether the denoiser is compiled.
        variant: Variant of the weight files, such as "fp16".
        revision: Revision of the repository that the weights come from.
    """

    owner: ClassVar[str] = "the model"

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    offload: Literal["none", "model", "sequential"] = "none"
    device_map: str | None = None
    attention: str | None = None
    scheduler: str | None = None
    lora: tuple[str, ...] = ()
    preview_vae: str | None = None
    compile: bool = False
    variant: str | None = None
    revision: str | None = None

    @field_validator("lora", mode="before")
    @classmethod
    def _one_or_several(cls, lora: Any) -> Any:
        return (lora,) if isinstance(lora, str) else lora


_CHUNKED = "a video model that makes its clips chunk by chunk"
OF_SOME_SAMPLERS = {
    "preview_frames": "a sampler of clips that can choose their frames",
    "inner_steps": _CHUNKED,
    "branch_noise": _CHUNKED,
}
"""Options that only samplers read which name them in `Sampler.own_options`, and what they need."""


class SamplerOptions(_Settings):
    """How a generator is stepped.

    Attributes:
        pipeline_kwargs: Passed to the pipeline's call: num_inference_steps, guidance_scale, height, ...
        stochastic: Whether steps add fresh noise; by default as the algorithm wants it.
        eta: How much noise stochastic steps add; 1 is as much as the reverse diffusion has, 0 none.
        sde: The stochastic step of a flow model: "ddim" keeps its marginals exactly, "euler" is
            Euler-Maruyama with diffusion coefficient `diffusion`.
        diffusion: Diffusion coefficient of "euler", as a function of time.
        diffusion_norm: Factor on that coefficient.
        interpolant: Path between noise and data on which stochastic steps of a flow model move.
        preview: What a preview shows. "decode" is the x0 estimate, or of a visual autoregressive model the
            sum of the scales done; nothing is computed for it. A diffusion or flow model takes "rollout:k":
            the end of k cheap deterministic steps from here. A visual autoregressive model takes "expected",
            with the next scale's expectation, for one more pass, and "complete", with the likeliest tokens of
            all further scales, for the price of these; a masked-token model "complete", with those of all
            further steps.
        preview_size: Longest side, in pixels, that previews are decoded at, by samplers that can choose; by
            default that of the finished sample.
        preview_frames: Frames of a clip that its previews have, evenly spaced and with the last one, by
            samplers that can choose; by default all.
        inner_steps: Whether the denoising steps within a chunk are decision steps, of a video model that
            makes its clips chunk by chunk; by default a decision step is a chunk.
        branch_noise: The noise that a chunk of a forked clip begins with: "fresh", its own, or "shared_root",
            that of the particle which all forks come from (Video-T1).
        recompute: Whether gradients keep only the inputs of the networks' blocks and compute the rest again,
            for less memory and more time. By default the autoencoder does, the denoiser on an accelerator,
            and each step where there are several; false where memory is plenty.
    """

    owner: ClassVar[str] = "the sampler"

    pipeline_kwargs: dict[str, Any] = Field(default_factory=dict)
    stochastic: bool | None = None
    eta: float = Field(default=1.0, ge=0)
    sde: Literal["ddim", "euler"] = "ddim"
    diffusion: str = "square"
    diffusion_norm: float = Field(default=1.0, gt=0)
    interpolant: Literal["linear", "vp"] = "linear"
    preview: str = "decode"
    preview_size: int | None = Field(default=None, ge=1)
    preview_frames: int | None = Field(default=None, ge=1)
    inner_steps: bool = False
    branch_noise: Literal["fresh", "shared_root"] = "fresh"
    recompute: bool | None = None

    def refuse_unread(self, read: frozenset[str], name: str) -> None:
        """Refuses options of some samplers alone where another one would ignore them.

        Args:
            read: Those among `OF_SOME_SAMPLERS` that the sampler reads.
            name: The sampler, for the message.

        Raises:
            ConfigError: If one is set that it does not read.
        """
        default = SamplerOptions()
        for option, what in OF_SOME_SAMPLERS.items():
            if option not in read and getattr(self, option) != getattr(default, option):
                raise ConfigError(
                    f"{option} needs {what} but got {getattr(self, option)!r} for the sampler {name!r}; "
                    "leave it out."
                )

    def refuse_rollout(self, name: str) -> None:
        """Refuses rollouts for a model of tokens.

        Raises:
            ConfigError: If previews are to be rollouts.
        """
        if self.preview.startswith("rollout"):
            raise ConfigError(
                f"preview={self.preview!r} is for diffusion and flow models but {name} draws tokens; use a "
                "preview of its own kind, or leave it out."
            )

    @field_validator("preview")
    @classmethod
    def _known(cls, preview: str) -> str:
        if _PREVIEW.fullmatch(preview):
            return preview
        raise ConfigError(
            "preview must be 'decode', 'expected', 'complete' or 'rollout:k' with k steps, such as "
            f"'rollout:2', but got {preview!r}; {did_you_mean(preview, ('decode', 'expected', 'complete'))}"
        )

    @field_validator("pipeline_kwargs")
    @classmethod
    def _in_range(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Refuses values that no pipeline takes; the rest is checked by the pipeline itself."""
        for name, value in arguments.items():
            rule = broken_rule(name, value)
            if rule:
                raise ConfigError(f"{name} of the pipeline must be {rule} but got {value!r}; change it.")
        return arguments


class RunConfig(_Settings):
    """Everything that decides the outcome of a search.

    A live Python object in the place of a name is written ``<Type>`` and cannot be loaded back.

    Attributes:
        prompt: What to generate.
        prompt_metadata: What a verifier may know about the prompt, such as a GenEval record.
        model: A registered model, a folder, or an id on the Hugging Face hub; by default the bundled one.
        model_options: How it is loaded.
        sampler_options: How it is stepped.
        algorithm: A registered search algorithm, ``module:attr`` or ``file.py@name``.
        algorithm_params: Its parameters.
        verifier: What scores, as a `Spec`; by default the one that the model is registered with.
        holdout_verifier: What judges the outcome beside it, as a `Spec`, and never guides the search.
        budget: As `tts_vision.ledger.Budget.parse` reads it.
        target: Ends the search as soon as the verifier scores a finished sample that high; "satisfied" as
            soon as it says that all demands of the prompt are met.
        seed: Root seed.
        max_batch: Particles computed at once; by default all, and fewer when memory runs out. Decides
            nothing about the outcome, so it is no part of the hash.
    """

    owner: ClassVar[str] = "a run"

    prompt: str
    prompt_metadata: dict[str, Any] = Field(default_factory=dict)
    model: str = Field(default_factory=default_model)
    model_options: ModelOptions = ModelOptions()
    sampler_options: SamplerOptions = SamplerOptions()
    algorithm: str = "best_of_n"
    algorithm_params: dict[str, Any] = Field(default_factory=dict)
    verifier: str
    holdout_verifier: str | None = None
    budget: str = "16x"
    target: float | Literal["satisfied"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_batch: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        """Splits parameters off the algorithm's name, and fills in the verifier of the model."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if isinstance(values.get("algorithm"), str):
            spec = Spec.parse(values["algorithm"])
            if spec.members:
                raise ConfigError(
                    f"An algorithm has no members in parentheses but got {values['algorithm']!r}; write "
                    f"'{spec.name}:key=value'."
                )
            values["algorithm"] = spec.name
            given = values.get("algorithm_params") or {}
            if not isinstance(given, Mapping):
                raise ConfigError(
                    f"algorithm_params of a run must be names with values but got {given!r}; write "
                    "'NAME: value' lines below it."
                )
            values["algorithm_params"] = {**spec.params, **given}
        if values.get("verifier") is None:
            values["verifier"] = _verifier_of(values.get("model"))
        return values

    @model_validator(mode="after")
    def _can_be_written(self) -> RunConfig:
        """Refuses texts that no file can hold, such as a command line in another encoding."""
        for name in type(self).model_fields:
            if not _is_unicode(getattr(self, name)):
                raise ConfigError(
                    f"{name} of a run must be Unicode text but got {getattr(self, name)!r}; write it in "
                    "UTF-8."
                )
        return self

    @field_validator("model", "algorithm", "verifier")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name.strip():
            raise ConfigError(
                f"A model, an algorithm and a verifier are named but got {name!r}; write a name, or leave "
                "it out."
            )
        return name

    @field_validator("prompt_metadata")
    @classmethod
    def _of_numbers(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if not is_finite(metadata):
            raise ConfigError(
                f"Numbers in prompt_metadata must be finite but got {metadata!r}; correct that record."
            )
        return metadata

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ConfigError(
                f"A prompt must say what to generate but got {prompt!r}; write at least one word."
            )
        return prompt

    @field_validator("target", mode="before")
    @classmethod
    def _can_be_reached(cls, target: Any) -> Any:
        if target is None or target == "satisfied":
            return target
        try:
            score = math.nan if isinstance(target, bool) else float(target)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not math.isfinite(score):
            raise ConfigError(
                f"The target of a search must be a finite score or 'satisfied' but got {target!r}; write a "
                "number such as 0.9, or 'satisfied' where the verifier checks demands."
            )
        return score

    @classmethod
    def load(cls, path: Path | str) -> RunConfig:
        """Reads a YAML file.

        Raises:
            ConfigError: If the file is missing, is not YAML, or holds what a run does not have.
        """
        return cls(**read_yaml(path))

    def plain(self) -> dict[str, Any]:
        """All settings as YAML and JSON have them."""
        values: dict[str, Any] = plain(self.model_dump())
        return values

    def dump(self) -> str:
        """The settings as YAML."""
        return dump_yaml(self.plain())

    @property
    def content(self) -> dict[str, Any]:
        """What decides the outcome."""
        return {key: value for key, value in self.plain().items() if key != "max_batch"}

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that stand for `content`."""
        text = json.dumps(self.content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunConfig:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("hash", None)  # of the settings before
        return copied

    @property
    def live(self) -> list[str]:
        """Settings that were Python objects and cannot be loaded back."""
        return [key for key, value in self.plain().items() if is_live(value)]


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The settings of a run in a YAML file.

    Raises:
        ConfigError: If there are none.
    """
    return read_settings(path, RunConfig)


def _is_unicode(value: Any) -> bool:
    """Whether all texts in a value can be encoded; half of a surrogate pair cannot."""
    if isinstance(value, BaseModel):
        return all(_is_unicode(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_unicode, value))
    return not isinstance(value, str) or not any("\ud800" <= char <= "\udfff" for char in value)


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The settings with ``key=value`` assignments applied.

    Args:
        values: Settings as in YAML.
        assignments: Such as ``algorithm.n=32``, ``sampler.eta=0.5``, ``pipeline.guidance_scale=4``,
            ``model.dtype=float16``, ``verifier.key=value`` or ``seed=3``. Values are read by the type of
            the setting; arguments of the pipeline declare none and are read by `parameters.read_value`.

    Raises:
        ConfigError: If one of them is no assignment or names no setting.
    """
    result = dict(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(
                f"An override is written 'key=value', such as 'algorithm.n=32', but got {assignment!r}; "
                "add what is missing."
            )
        if len(path) == 2 and path[0] == "verifier":
            result["verifier"] = _with_param(result, path[1], text)
            continue
        if len(path) > 1 and path[0] in SECTIONS:
            path = [*SECTIONS[path[0]], *path[1:]]
        if path[0] not in RunConfig.model_fields:
            groups = [f"{group}.KEY" for group in (*SECTIONS, "verifier")]
            names = [group.replace("KEY", ".".join(path[1:])) for group in groups] if len(path) > 1 else []
            raise ConfigError(
                f"An override must name one of {', '.join([*RunConfig.model_fields, *groups])} but got "
                f"{key!r}; {did_you_mean(key, names or RunConfig.model_fields)}"
            )
        result = _assign(result, path, _read_setting(path, text), key)
    return result


def _with_param(values: Mapping[str, Any], name: str, text: str) -> str:
    """The verifier of some settings, one of its parameters replaced."""
    spec = Spec.parse(str(values.get("verifier") or _verifier_of(values.get("model"))))
    changed = replace(spec, params={**spec.params, name: text.strip()})
    if Spec.parse(str(changed)) != changed:
        raise ConfigError(
            f"A parameter of a verifier cannot hold ', key=' or unmatched parentheses but {name} is "
            f"{text!r}; set it in Python, or in a verifier of your own ('file.py@name')."
        )
    return str(changed)


def _read_setting(path: Sequence[str], text: str) -> Any:
    """The value of a text for the setting at `path`, by the type of that setting."""
    settings: type[BaseModel] | None = RunConfig
    for depth, name in enumerate(path):
        field = None if settings is None else settings.model_fields.get(name)
        if field is None:
            return text  # no such setting, which is told when all are read
        settings, rest = group_of(field.annotation), path[depth + 1 :]
        if rest and name == "pipeline_kwargs":
            return text if TEXT_ARGUMENT.fullmatch(rest[0]) else read_value(text)
        if rest and name == "algorithm_params":
            return text  # its signature has the type
        if rest and settings is None:
            return read_value(text)
    if settings is not None:
        return read_value(text)
    assert field is not None
    if text == "" and type(None) in get_args(field.annotation):
        return None
    try:
        return convert(text, field.annotation)
    except ValueError:
        return text  # what is wrong with it is told when all are read


def _verifier_of(model: str | None) -> str:
    """The verifier that a model is registered with."""
    name = default_model() if model is None else str(model)
    entry = registered_model(name)
    if entry is None or not entry.verifier:
        remedy = "name one ('tts-vision list verifiers' shows all)."
        raise ConfigError(
            f"A search needs a verifier but none was given for model {name!r}; "
            + (remedy if entry is not None else did_you_mean(name, known_names("model"), remedy))
        )
    return entry.verifier


def _assign(values: Mapping[str, Any], path: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    if len(path) == 1:
        return {**values, path[0]: value}
    inner = values.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(
            f"{key!r} must name a setting inside {path[0]!r}, but that is {inner!r}; shorten it."
        )
    return {**values, path[0]: _assign(inner, path[1:], value, key)}


def _explain(error: ValidationError, settings: type[_Settings]) -> str:
    """The first mistake as rule, value, remedy."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        names = list(settings.model_fields)
        remedy = did_you_mean(where, names)
        return f"Settings of {settings.owner} are {', '.join(names)} but got {where!r}; {remedy}"
    if first["type"] == "missing":
        return f"{settings.owner.capitalize()} needs {where!r}, which was not given; set it."
    rule = first["msg"].removeprefix("Input should be ")
    return f"{where} of {settings.owner} must be {rule} but got {first['input']!r}; change it."
