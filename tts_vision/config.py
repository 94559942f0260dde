"""What a search is told: one object, to and from YAML and flags, whose hash names the run."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tts_vision.errors import ConfigError
from tts_vision.parameters import convert, is_finite, read_value
from tts_vision.registry import default_model, known_names, registered_model

_PARAMS = re.compile(r":(?=\w+=)")
_NEXT_PARAM = re.compile(r",(?=\s*\w+=)")
# what the first word of a dotted override stands for
SECTIONS: dict[str, tuple[str, ...]] = {
    "algorithm": ("algorithm_params",),
    "model": ("model_options",),
    "sampler": ("sampler_options",),
    "pipeline": ("sampler_options", "pipeline_kwargs"),
}
# arguments of pipelines whose type is the same everywhere
_TEXT_ARGUMENT = re.compile(r"(negative_)?prompt(_\d+)?")
_SIZE_ARGUMENTS = {"height": 32_768, "width": 32_768, "num_frames": 100_000, "num_inference_steps": 10_000}
_NUMBER_ARGUMENTS = ("guidance_scale", "true_cfg_scale", "guidance_rescale", "strength", "eta")
_LIST_ARGUMENTS = ("sigmas", "timesteps")
_OBJECT_ARGUMENT = re.compile(
    r"(\w+_)?(image|images|mask|video|embeds|latents)|generator|callback(_on_step_end)?|\w*attention_kwargs"
)
_LARGEST = 1e6
_PREVIEW = re.compile(r"decode|expected|complete|rollout:[1-9]\d{0,3}")


@dataclass(frozen=True)
class Spec:
    """A plugin, its members and its parameters, as text.

    ``name``, ``name:key=value,key=value``, ``module:attr`` or ``file.py@name``; the last two take parameters
    as well. A plugin made of others names them in parentheses: ``ensemble(hpsv2.1, clip_score):how=zscore``;
    in there, a value that is a list stands in brackets, ``weights=[2,1]``.
    """

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Spec, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads what `str` writes.

        Raises:
            ConfigError: If there is no name, or parentheses do not match.
        """
        head, inside, tail = _parenthesised(text.strip())
        name, *rest = _PARAMS.split(head + tail, maxsplit=1)
        if not name:
            raise ConfigError(
                "A plugin is written 'name', 'name:key=value,key=value' or 'name(member, member):key=value' "
                f"but got {text!r}; name it first."
            )
        pairs = [pair.partition("=") for pair in (_NEXT_PARAM.split(rest[0]) if rest else [])]
        members = () if inside is None else tuple(cls.parse(part) for part in _members(inside))
        return cls(name, {key.strip(): value.strip() for key, _, value in pairs}, members)

    def __str__(self) -> str:
        members = f"({', '.join(map(str, self.members))})" if self.members else ""
        params = ",".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.name}{members}:{params}" if params else f"{self.name}{members}"


def _parenthesised(text: str) -> tuple[str, str | None, str]:
    """The text before, inside and after the parentheses behind a name; inside is None without any."""
    start = text.find("(")
    first_param = _PARAMS.search(text)
    if start < 0 or (first_param is not None and first_param.start() < start):
        return text, None, ""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            tail = text[at + 1 :].lstrip()
            if tail and not _PARAMS.match(tail):
                return text, None, ""  # parentheses in the name of a file
            return text[:start].rstrip(), text[start + 1 : at], tail
    raise ConfigError(f"Parentheses of a plugin must match but got {text!r}; close them.")


def _members(text: str) -> list[str]:
    """The parts between the outer commas; ``key=value`` after a comma still belongs to the part before it."""
    parts, depth = [""], 0
    for at, char in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(char, 0)
        if char == "," and not depth and not _NEXT_PARAM.match(text, at):
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


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
            rule = _broken_rule(name, value)
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
        return yaml.dump(self.plain(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

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
        return [key for key, value in self.plain().items() if _is_live(value)]


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by the core schema of YAML 1.2: ``no``, ``16:9`` and ``010`` are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})\\Z"), list(_first)
        )


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML file; a setting of text is read as text, whatever it looks like.

    Raises:
        ConfigError: If there are none.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            return _read_settings(loader, node, RunConfig, str(path))
        found = type(loader.construct_document(node)).__name__ if node is not None else "nothing"
    except OSError as error:
        raise ConfigError(
            f"A configuration must be a readable file but {str(path)!r}: {error.strerror}."
        ) from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(
            f"A configuration must be YAML but {str(path)!r} is not: {where}; correct that line."
        ) from None
    raise ConfigError(
        f"A configuration must hold 'key: value' lines but {str(path)!r} holds {found}; "
        "the config.yaml of any result folder is an example."
    )


def _read_settings(
    loader: _Loader, node: yaml.MappingNode, settings: type[_Settings], path: str
) -> dict[str, Any]:
    """The mapping of a node, its values by the types of `settings`."""
    loader.flatten_mapping(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.tag)
        if key in values:
            raise ConfigError(
                f"A configuration must set {key!r} once but {path!r} sets it again in line "
                f"{key_node.start_mark.line + 1}; remove one."
            )
        field = settings.model_fields.get(key)
        annotation = Any if field is None else field.annotation
        group = _group(annotation)
        if group is not None and isinstance(value_node, yaml.MappingNode):
            values[key] = _read_settings(loader, value_node, group, path)
        elif _is_text(annotation) and _is_plain(value_node):
            values[key] = value_node.value
        else:
            values[key] = loader.construct_object(value_node, deep=True)
    return values


def _is_plain(node: yaml.Node) -> bool:
    """Whether a node is a scalar without quotes and tag that would be read as a number or a truth value."""
    kinds = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in kinds


def _group(annotation: Any) -> type[_Settings] | None:
    """The group of settings that a field is, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, _Settings) else None


def _is_text(annotation: Any) -> bool:
    """Whether a setting is a text, or None."""
    return annotation is str or set(get_args(annotation)) == {str, type(None)}


def _is_unicode(value: Any) -> bool:
    """Whether all texts in a value can be encoded; half of a surrogate pair cannot."""
    if isinstance(value, BaseModel):
        return all(_is_unicode(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_unicode, value))
    return not isinstance(value, str) or not any("\ud800" <= char <= "\udfff" for char in value)


def _broken_rule(name: str, value: Any) -> str:
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
    if _TEXT_ARGUMENT.fullmatch(name):
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
    settings: type[_Settings] | None = RunConfig
    for depth, name in enumerate(path):
        field = None if settings is None else settings.model_fields.get(name)
        if field is None:
            return text  # no such setting, which is told when all are read
        settings, rest = _group(field.annotation), path[depth + 1 :]
        if rest and name == "pipeline_kwargs":
            return text if _TEXT_ARGUMENT.fullmatch(rest[0]) else read_value(text)
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


def plain(value: Any) -> Any:
    """`value` as YAML and JSON have it; an object of any other kind by its type and its content."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value) if isinstance(value, Path) else live_name(value)


def live_name(value: Any) -> str:
    """What stands for a Python object where its name would be."""
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    if any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__):
        name = "Image"  # whatever file it was read from
    content = getattr(value, "tobytes", None)
    return f"<{name} {hashlib.sha256(content()).hexdigest()[:8]}>" if callable(content) else f"<{name}>"


def _is_live(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_live(item) for item in value.values())
    if isinstance(value, list):
        return any(_is_live(item) for item in value)
    return is_live_name(value)


def is_live_name(value: Any) -> bool:
    """Whether a value stands for a Python object, as `live_name` wrote it."""
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "use one of these.") -> str:
    """The remedy for a wrong name."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


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
