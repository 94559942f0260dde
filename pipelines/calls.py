"""The arguments of a pipeline's call: the settings of the search, and the changes of each condition."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.condition import ORIGINAL, Condition, distinct
from tts_vision.errors import ConfigError, did_you_mean
from tts_vision.pipelines.segment import Driver

_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
_SET_BY_THE_SEARCH = {"prompt", "generator", "latents", "output_type", "return_dict", *_COUNTS}
_TEXT = re.compile(r"(negative_)?prompt(_\d+)?")


class Calls:
    """Builds the arguments of a pipeline's call for rows of particles.

    Args:
        driver: Of the pipeline.
        settings: Arguments of all calls of the search.

    Raises:
        ConfigError: If a setting is no argument of the call, or is set by the search.
    """

    def __init__(self, driver: Driver, settings: Mapping[str, Any]) -> None:
        self.name = type(driver.pipe).__name__
        self.settings = dict(settings)
        self._driver, self._signature = driver, driver.signature
        self._check_names(settings, "pipeline_kwargs")
        self._count_name = next((name for name in self._signature if name in _COUNTS), None)
        self._text: str | None = None
        # video pipelines have a count but many of them ignore it
        self.lists_texts = self._count_name != "num_images_per_prompt"

    def of(self, condition: Condition) -> dict[str, Any]:
        """The arguments of a call for one particle."""
        given = condition.arguments()
        if condition.embeddings:
            device = self._driver.device
            given |= {name: asset.value.to(device) for name, asset in condition.embeddings.items()}
        encoded = tuple(part for part in ("", "negative_") if f"{part}prompt_embeds" in given)
        # a pipeline takes a text or its embedding, not both
        settings = {k: v for k, v in self.settings.items() if not _replaced(k, encoded)}
        has_text = "" not in encoded and settings.get("prompt_embeds") is None
        return {**settings, **given, "prompt": condition.text if has_text else None}

    def batch(
        self, conditions: Sequence[Condition], output_type: str, *, lists: bool = False, repeats: bool = False
    ) -> tuple[dict[str, Any], bool]:
        """The arguments of a call for several particles that differ in their texts alone.

        Args:
            conditions: Of each particle.
            output_type: Of the call.
            lists: Give each text as a list, even if all particles have the same.
            repeats: Give each input image once for each particle, not once for all.

        Returns:
            The arguments, and whether some texts differ.
        """
        calls = {condition: self.of(condition) for condition in distinct(conditions)}
        call = {**calls[conditions[0]], "output_type": output_type}
        texts = {name: [calls[c][name] for c in conditions] for name in texts_of(call)}
        mixed = any(len(set(values)) > 1 for values in texts.values())
        n = len(conditions)
        if mixed or lists or (self.lists_texts and n > 1):
            call |= texts
        if repeats:
            call |= {name: _times(value, n) for name, value in call.items() if _is_image(value)}
        if self.lists_texts:
            embedded = {k for k in call if k.endswith(_EMBEDDED) and isinstance(call[k], Tensor)}
            call |= {
                name: call[name].repeat_interleave(n, 0) for name in {*conditions[0].embeddings, *embedded}
            }
        elif self._count_name is not None:
            call[self._count_name] = 1 if mixed or lists else n
        return call, mixed

    @staticmethod
    def key(condition: Condition) -> str:
        """All of a condition but its texts."""
        described = condition.describe()
        return json.dumps(
            {name: described.get(name) for name in ("images", "embeddings", "overrides")}, sort_keys=True
        )

    def cost_key(self, condition: Condition) -> Hashable:
        """All of a condition that decides the number of network evaluations."""
        embeddings = frozenset(condition.embeddings)
        texts = frozenset(texts_of({**self.settings, **condition.arguments()}))
        overrides = json.dumps(dict(condition.overrides), sort_keys=True)
        return overrides, texts, embeddings, frozenset(condition.images)

    def check(self, condition: Condition) -> None:
        """Checks that the pipeline's call can take a condition.

        Raises:
            ConfigError: If it cannot.
        """
        negative = () if condition.negative_text is None else ("negative_prompt",)
        self._check_names(negative, "The negative text of a condition")
        self._check_names(set(condition.images) - {ORIGINAL}, "Images of a condition")
        self._check_names(condition.embeddings, "Embeddings of a condition")
        self._check_names(condition.overrides, "Overrides of a condition")
        names = [*negative, *condition.images, *condition.embeddings, *condition.overrides]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"A condition must set each argument once but sets one of {', '.join(names)} twice; keep one."
            )
        for name, asset in condition.embeddings.items():
            if not isinstance(asset.value, Tensor) or not asset.value.ndim or len(asset.value) != 1:
                shape = tuple(asset.value.shape) if isinstance(asset.value, Tensor) else "of an image"
                raise ConfigError(
                    f"Embeddings of a condition must be tensors of one row, shape (1, ...), but {name} has "
                    f"the shape {shape}; give those of one prompt."
                )
        call = self.of(condition)
        for name, text in texts_of(call).items():
            self._check_length(name, text, call)
        if self.settings.get("prompt_embeds") is not None and not condition.embeddings:
            self._check_embedded(condition)
        if condition.overrides:
            self._check_schedule(condition, call)

    def _check_embedded(self, condition: Condition) -> None:
        """Refuses a second text where an embedding stands for the first."""
        if self._text is None:
            self._text = condition.text
        if condition.text != self._text:
            raise ConfigError(
                "prompt_embeds in pipeline_kwargs stand for one prompt, "
                f"{self._text[:60]!r}, but a particle is to be generated for {condition.text[:60]!r}; leave "
                "prompt_embeds out, or use an algorithm that keeps the prompt."
            )

    def schedule(self, call: Mapping[str, Any] | None = None) -> Any:
        """A copy of the scheduler as a call will set it, as far as that can be known before one.

        Args:
            call: Arguments of the call; by default the settings alone.

        Raises:
            ConfigError: If the number of steps is not positive, or is none that the scheduler takes.
        """
        call = self.settings if call is None else call
        scheduler = copy.deepcopy(self._driver.scheduler)
        steps = call.get("num_inference_steps")
        if steps is None:
            default = self._signature.get("num_inference_steps")
            steps = 50 if default is None or default.default is inspect.Parameter.empty else default.default
        if isinstance(steps, list):
            steps = sum(steps)
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ConfigError(f"num_inference_steps must be at least 1 but got {steps!r}; raise it.")
        known = inspect.signature(scheduler.set_timesteps).parameters
        extra: dict[str, Any] = {
            name: call[name]
            for name in ("timesteps", "sigmas")
            if call.get(name) is not None and name in known
        }
        custom = bool(extra)
        if "mu" in known and scheduler.config.get("use_dynamic_shifting"):
            extra["mu"] = 1.0
        given = self._with_defaults(call)
        extra |= {name: given[name] for name in _OF_SCHEDULE if name in known and name in given}
        try:
            if custom:
                scheduler.set_timesteps(**extra)
            else:
                scheduler.set_timesteps(steps, **extra)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{type(scheduler).__name__} must take the steps of a call but, for num_inference_steps "
                f"{steps} and {extra}: {error} Change them in pipeline_kwargs."
            ) from error
        return scheduler

    def steps(self, scheduler: Any, call: Mapping[str, Any] | None = None) -> range:
        """The positions, among the timesteps of a `schedule`, of those that a call takes.

        The pipeline is asked: by its own `get_timesteps`, or where the loop ends early by running it dry.

        Raises:
            ConfigError: If a call takes none.
        """
        call = self.settings if call is None else call
        taken = range(len(scheduler.timesteps))
        if call.get("denoising_end") is not None:
            taken = self._driver.dry_plan({**call, "prompt": ""}) or taken
        elif self._slices:
            n = self._driver.asked_timesteps(scheduler, self._with_defaults(call))
            taken = range(len(taken) - n, len(taken))
        if not taken:
            given = self._with_defaults(call)
            raise ConfigError(
                f"A call must take at least one step but {self.name} takes none with strength "
                f"{given.get('strength')!r} and num_inference_steps {given.get('num_inference_steps')!r}; "
                "raise them."
            )
        return taken

    @property
    def _slices(self) -> bool:
        """Whether the pipeline takes a part of the timesteps by a method of its own (image to image)."""
        return "strength" in self._signature and hasattr(self._driver.pipe, "get_timesteps")

    def _with_defaults(self, call: Mapping[str, Any]) -> dict[str, Any]:
        defaults = {k: p.default for k, p in self._signature.items() if p.default is not p.empty}
        return {**defaults, **call}

    def _check_names(self, names: Iterable[str], what: str) -> None:
        for key in names:
            if key in _SET_BY_THE_SEARCH:
                raise ConfigError(f"{key} is set by the search but {what} has it too; remove it there.")
            if key not in self._signature or key == "self":
                hint = did_you_mean(key, [k for k in self._signature if k != "self"], "remove it.")
                raise ConfigError(f"{what} must be arguments of {self.name} but got {key!r}; {hint}")

    def _check_schedule(self, condition: Condition, call: Mapping[str, Any]) -> None:
        """Refuses overrides that change the steps, which all particles of a search share."""
        ours, theirs = self.schedule(), self.schedule(call)
        n, m = len(self.steps(ours)), len(self.steps(theirs, call))
        if n == m and all(_same(getattr(ours, k, None), getattr(theirs, k, None)) for k in _SCHEDULE):
            return
        changed = f"makes them {m}" if n != m else "moves them to other timesteps"
        raise ConfigError(
            f"Overrides of a condition must keep the {n} steps of the search but {dict(condition.overrides)} "
            f"{changed}; set that in pipeline_kwargs, for all particles."
        )

    def _check_length(self, name: str, text: str, call: Mapping[str, Any]) -> None:
        """Refuses a text that every tokenizer of the pipeline would cut off."""
        limits = []
        default = self._signature.get("max_sequence_length")
        for part, tokenizer in self._driver.pipe.components.items():
            if not part.startswith("tokenizer") or tokenizer is None:
                continue
            limit = call.get("max_sequence_length") or (default.default if default is not None else None)
            own = getattr(tokenizer, "model_max_length", None) or 10**9
            limit = (
                own if "CLIP" in type(tokenizer).__name__ or not isinstance(limit, int) else min(limit, own)
            )
            ids = tokenizer(text=text)["input_ids"]  # by name: a processor takes images first
            limits.append((len(ids[0] if ids and isinstance(ids[0], list) else ids), limit))
        if limits and all(tokens > limit for tokens, limit in limits):
            tokens, limit = max(limits, key=lambda pair: pair[1])
            remedy = " or raise max_sequence_length." if default is not None else "."
            what = "A negative prompt" if name.startswith("negative") else "A prompt"
            raise ConfigError(
                f"{what} must have at most {limit} tokens for {self.name} but has {tokens}: "
                f"{text[:60]!r}...; shorten it{remedy}"
            )


_EMBEDDED = ("prompt_embeds", "prompt_embeds_mask", "prompt_attention_mask", "prompt_embeds_2")
_OF_SCHEDULE = ("max_timesteps", "intermediate_timesteps")
"""Arguments of calls that some schedulers make their timesteps from, beside the number of steps."""
_SCHEDULE = ("timesteps", "sigmas")


def texts_of(call: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of a call that are texts, one per prompt."""
    return {name: value for name, value in call.items() if isinstance(value, str) and _TEXT.fullmatch(name)}


def has_media(value: Any) -> bool:
    """Whether arguments hold images or tensors, which a list of prompts would have to match in number."""
    if isinstance(value, Mapping):
        return any(map(has_media, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_media, value))
    return isinstance(value, (Image.Image, Tensor, np.ndarray))


def _is_image(value: Any) -> bool:
    """Whether an argument is one image: of PIL, or a tensor with a batch of one or none."""
    return isinstance(value, Image.Image) or (
        isinstance(value, Tensor) and (value.ndim == 3 or (value.ndim > 3 and len(value) == 1))
    )


def _times(image: Any, n: int) -> Any:
    if isinstance(image, Tensor):
        image = image if image.ndim > 3 else image[None]
        return image.repeat(n, *[1] * (image.ndim - 1))
    return [image] * n


def _replaced(name: str, encoded: Sequence[str]) -> bool:
    """Whether a text argument gives way to embeddings."""
    match = _TEXT.fullmatch(name)
    return match is not None and (match[1] or "") in encoded


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a is b
