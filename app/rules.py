"""What may be asked for from a browser or over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_vision.config import RunConfig, Spec, did_you_mean
from tts_vision.errors import ConfigError
from tts_vision.registry import default_model, known_names, registered, registered_model
from tts_vision.trust import demands, editors

PROMPT = 10_000
"""Characters of a prompt, at most."""
METADATA = 20_000
"""Characters of a prompt's metadata as JSON, at most."""
PIXELS = 4096 * 4096
"""Pixels of a sample, at most."""
_SIDES, _FRAMES, _STEPS = ("height", "width"), 512, 1000
# code, addresses, and paths: of the last, a value of a plugin's parameter needs none
_CODE = re.compile(r"\.py@|^\s*[A-Za-z_][\w.]*:[A-Za-z_]\w*\s*$|key_variable")
_PLACE = re.compile(r"://|[/\\~@]|^\s*\.")


@dataclass(frozen=True)
class Rules:
    """What a browser or an HTTP client may ask for.

    Code (``file.py@name``, ``module:attr``), addresses, and files of this machine are never accepted, in
    whatever setting. Registered plugins are, and models by their id on the hub, unless `allowed` says what.

    Attributes:
        allowed: The models and verifiers that may be used, as written on a command line, and none but these;
            None for all that are registered, and models of the hub. What it names may be a path.
        output: The folder of the searches, whose images may be refined; None for no file at all.
    """

    allowed: frozenset[str] | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in self.allowed or ():
            if _CODE.search(name):
                raise ConfigError(
                    f"--allow names models and verifiers but got {name!r}: code is never accepted from a "
                    "browser or over HTTP; register it as a plugin."
                )

    def check(self, config: RunConfig) -> None:
        """Checks that a search may be run.

        Raises:
            ConfigError: If it may not; the message says why.
        """
        check_prompt(config.prompt)
        if len(json.dumps(config.prompt_metadata)) > METADATA:
            raise ConfigError(f"prompt_metadata must have at most {METADATA} characters; shorten it.")
        self.check_model(config.model)
        self.check_verifier(config.verifier)
        if config.holdout_verifier is not None:
            self.check_verifier(config.holdout_verifier)
        _check_name("algorithm", config.algorithm)
        if isinstance(verifier := config.algorithm_params.get("verifier"), str):
            self.check_verifier(verifier)
        for editor in editors(config.algorithm_params):
            self.check_model(editor)
        params = dict(config.algorithm_params)
        if (image := params.pop("image", None)) and image not in self.files_of(config):
            raise ConfigError(_not_accepted("image of the algorithm", str(image)))
        for name, text in _texts(params):
            _check_value(f"{name} of the algorithm", text, place=name != "lineage")
        if asked := demands(config.plain()):
            raise ConfigError(_refusal("plugin", next(iter(asked))))
        self._check_loading(config)
        _check_size(config.sampler_options.pipeline_kwargs)

    def files_of(self, config: RunConfig) -> list[str]:
        """The images of the output folder that a search starts from."""
        image = config.algorithm_params.get("image")
        if not isinstance(image, str) or self.output is None:
            return []
        path = Path(image)
        is_own = path.is_absolute() and path.suffix == ".png" and path.is_relative_to(self.output)
        # no symlink and no ".." leads out of the folder
        return [image] if is_own and path.resolve() == path and path.is_file() else []

    def models(self) -> list[str]:
        """The names of models that may be used here; those of the hub, where they may, are not listed."""
        if self.allowed is None:
            return [name for name in known_names("model") if name != "diffusers" and "{" not in name]
        found = {default_model()} | {name for name in self.allowed if registered("verifier", name) is None}
        return sorted(found)

    def check_model(self, name: str) -> None:
        """Checks that a model may be used.

        Raises:
            ConfigError: If it may not.
        """
        if self.allowed is not None:
            if name not in self.allowed and name != default_model():
                raise ConfigError(self._not_allowed("model", name, {default_model()}))
            return
        if ".py@" in name:
            raise ConfigError(_refusal("model", name))
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists():
            return  # an id on the hub
        if registered_model(name) is None or _PLACE.search(name) or name == "diffusers":
            raise ConfigError(_refusal("model", name))

    def check_verifier(self, text: str) -> None:
        """Checks that a verifier, and every member of it, may be used.

        Raises:
            ConfigError: If it may not.
        """
        if self.allowed is not None and text in self.allowed:
            return
        self._check_spec(Spec.parse(text))

    def _check_spec(self, spec: Spec) -> None:
        _check_name("verifier", spec.name)
        if self.allowed is not None and spec.name not in self.allowed | _OWN:
            raise ConfigError(self._not_allowed("verifier", spec.name, _OWN))
        for name, text in spec.params.items():
            _check_value(f"{name} of {spec.name}", text)
        for member in spec.members:
            self._check_spec(member)

    def _check_loading(self, config: RunConfig) -> None:
        options = config.model_options
        for name in ("lora", "preview_vae", "revision", "variant"):
            value = getattr(options, name)
            texts = [value] if isinstance(value, str) else list(value or ())
            if bad := [text for text in texts if text not in (self.allowed or ())]:
                raise ConfigError(
                    f"{name} of the model must be one that the server allows but got {bad[0]!r}; leave it "
                    "out, or start the app with --allow."
                )

    def _not_allowed(self, kind: str, name: str, own: set[str] | frozenset[str]) -> str:
        known = ", ".join(sorted((self.allowed or frozenset()) | own))
        return f"A {kind} must be one that this server allows ({known}) but got {name[:80]!r}; choose one."


_OWN = frozenset({"playground_clip", "playground_oracle", "human", "ensemble"})


def check_prompt(text: str) -> None:
    """Checks the length of a prompt.

    Raises:
        ConfigError: If it is too long.
    """
    if len(text) > PROMPT:
        raise ConfigError(f"A prompt must have at most {PROMPT} characters but got {len(text)}; shorten it.")


def _check_name(kind: Any, name: str) -> None:
    if ".py@" in name or (":" in name and registered(kind, name) is None):
        raise ConfigError(_refusal(kind, name))
    if registered(kind, name) is None:
        names = known_names(kind)
        raise ConfigError(
            f"{str(kind).capitalize()} must be a registered one but got {name[:80]!r}; "
            f"{did_you_mean(name, names, 'choose another one.')}"
        )


def _check_value(what: str, text: str, *, place: bool = True) -> None:
    if _CODE.search(text) or (place and _PLACE.search(text)):
        raise ConfigError(_not_accepted(what, text))


def _not_accepted(what: str, text: str) -> str:
    return (
        f"Code, addresses and files are not accepted from a browser or over HTTP but {what} is "
        f"{text[:80]!r}; use the command line, or start the app with --allow."
    )


def _check_size(arguments: dict[str, Any]) -> None:
    sides = [int(arguments.get(name) or 1) for name in _SIDES]
    if sides[0] * sides[1] > PIXELS:
        raise ConfigError(
            f"A sample must have at most {PIXELS} pixels but got {sides[1]}x{sides[0]}; lower height or "
            "width."
        )
    for name, most in (("num_frames", _FRAMES), ("num_inference_steps", _STEPS)):
        value = arguments.get(name)
        if isinstance(value, int) and value > most:
            raise ConfigError(f"{name} must be at most {most} here but got {value}; lower it.")


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, name or str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)


def _refusal(kind: str, name: str) -> str:
    return (
        f"A {kind} must be a registered one, or a model of the hub by its id, but got {name[:80]!r}: code, "
        "addresses and files are not accepted from a browser or over HTTP; use the command line, or start "
        "the app with --allow."
    )
