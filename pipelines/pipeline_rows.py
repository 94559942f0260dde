"""Sends rows of particles through a diffusers pipeline, a segment at a time, together where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.errors import CapabilityError, ConfigError, PipelineError
from tts_vision.memory import out_of_memory
from tts_vision.pipelines.caches import CACHES, Caches
from tts_vision.pipelines.callbacks import CALLBACK, asks_for_more, check_callback
from tts_vision.pipelines.calls import Calls, has_media, texts_of
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.driven import DENOISERS, Segment, modules
from tts_vision.pipelines.edits import EDITS, Edits
from tts_vision.pipelines.encoding import Shapes
from tts_vision.pipelines.noise import noise_scale
from tts_vision.pipelines.proxy import Step, initial_scale
from tts_vision.pipelines.rollout import Coarse
from tts_vision.pipelines.row_state import generator_of
from tts_vision.pipelines.rows import ONE_BY_ONE, Inputs, agree
from tts_vision.pipelines.rules import Rule
from tts_vision.pipelines.schedule import levels_if_known
from tts_vision.pipelines.segment import Driver
from tts_vision.pipelines.stochastic import Level
from tts_vision.pipelines.trees import unpack_tree
from tts_vision.pipelines.whole import cache_of, reason_to_drive_whole
from tts_vision.sampler import Sampler
from tts_vision.types import Meter, NoMeter, Phase, State


class PipelineRows(Sampler):
    """A sampler's way through a pipeline: conditions, batches, segments.

    Rows that agree in overrides, images and embeddings go through the pipeline together, with their texts as
    lists, where that gives the same as each text alone: where the encoders' inputs have the same shapes.
    Others go through it one after another.

    Args:
        pipe: The pipeline, as the user set it up; left as it was after every call.
        settings: Arguments of its call.

    Raises:
        ConfigError: If an argument is none of the pipeline's.
    """

    def __init__(self, pipe: Any, settings: Mapping[str, Any]) -> None:
        self.name = type(pipe).__name__
        self._driver = Driver(pipe, NoMeter())
        self._calls = Calls(self._driver, settings)
        self._whole = reason_to_drive_whole(pipe, [m for _, m in modules(pipe, DENOISERS)], settings)
        self._cache = next((c for _, m in modules(pipe, DENOISERS) if (c := cache_of(m))), None)
        self._has_callback = settings.get(CALLBACK) is not None
        check_callback(settings)
        if self._whole is None and asks_for_more(settings) and not self._runs_silently():
            self._whole = (
                "its callback edits tensors of a loop that does not run on a denoiser that answers zeros"
            )
        self._step_rule: Rule | None = None
        self._native_noise = False
        self._scale: float | None = None
        self._alone: dict[Condition, Alone] = {}
        self._takes_lists: dict[Hashable, bool] = {}
        self._together: dict[Hashable, bool | None] = {}

    def _runs_silently(self) -> bool:
        return self._driver.forwards_per_step(self._calls.of(Condition("a photo"))) is not None

    def bind(self, meter: Meter) -> None:
        super().bind(meter)
        self._driver.bind(meter)

    def _entered(self, condition: Condition, generators: list[torch.Generator]) -> Segment:
        """An empty segment of one condition alone, with a row for each generator; it is checked first.

        Raises:
            ConfigError: If the pipeline cannot take the condition.
            PipelineError: If its loop cannot be driven step by step.
        """
        self._calls.check(condition)
        conditions = (condition,) * len(generators)
        try:
            segment = self._run_empty(conditions, generators)
        except (TypeError, ValueError, PipelineError) as error:
            given = sorted(condition.arguments())
            if not given:
                raise
            raise ConfigError(
                f"A condition must be one that {self.name} can take but: {error}; change {', '.join(given)}."
            ) from error
        if segment.entered is None and not self._whole:
            raise PipelineError(
                f"A pipeline must prepare its latents in prepare_latents but {self.name} does not; "
                "it cannot be driven step by step."
            )
        if segment.entered is not None and len(segment.entered) != len(generators):
            raise PipelineError(
                f"A pipeline must draw one latent per prompt but {self.name} drew {len(segment.entered)} "
                f"for {len(generators)}; set max_batch to 1."
            )
        total, offset = segment.proxy.total, segment.proxy.offset
        if not self._whole and total is not None and total != self.num_steps:
            # a search has planned by the number that was promised
            if condition.overrides:
                raise ConfigError(
                    f"Overrides of a condition must keep the {self.num_steps} steps of the search but "
                    f"{dict(condition.overrides)} makes them {total}; set that in pipeline_kwargs."
                )
            raise PipelineError(
                f"A pipeline must take the steps that its scheduler plans, {self.num_steps}, but {self.name} "
                f"takes {total}; set num_inference_steps (or timesteps, sigmas) so that they agree."
            )
        if "noise" in self.capabilities and self._scale is None:
            self._find_scale(segment)
        levels = levels_if_known(segment.proxy.inner) or levels_if_known(self._calls.schedule())
        self._alone[condition] = Alone(
            segment.encoded,
            None if levels is None or self._whole else levels[offset : offset + self.num_steps + 1],
            torch.Size([1]) if segment.entered is None else segment.entered.shape[1:],
        )
        return segment

    def _run_empty(self, conditions: Sequence[Condition], generators: list[torch.Generator]) -> Segment:
        """An empty segment; of a pipeline that is driven whole, a dry run."""
        if not self._whole:
            return self._run(conditions, 0, 0, generators=generators, output_type="latent")
        call, _ = self._batch(conditions, "latent")
        return self._driver.dry_segment({**call, "generator": generators})

    def _find_scale(self, segment: Segment) -> None:
        """Finds the factor on unit noise; latents that are not noise alone have no moves of their noise."""
        inner = segment.proxy.inner
        known = [float(initial_scale(inner)), 1.0]
        known += [float(s) for s in [inner.config.get("sigma_max")] if isinstance(s, (int, float)) and s > 0]
        if segment.entered is not None and segment.noise is not None:
            self._scale = noise_scale(segment.entered[0], segment.noise, known)
        if self._scale is None:
            self.capabilities -= {"noise"} if self._step_rule is not None else {"noise", "moves"}

    def _initial(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """``(B, ...)`` latents that enter the loop, a row for each seed."""
        if len(seeds) > 1 and self._rows_together(condition) is None:
            return torch.cat([self._initial(condition, [seed]) for seed in seeds])
        entered = self._entered(condition, [generator_of(seed) for seed in seeds]).entered
        # a pipeline that is driven whole may make its latents out of sight
        return torch.zeros(len(seeds), 1) if entered is None else entered

    def _entry_scale(self, step: int, condition: Condition) -> float | None:
        """The factor on the latents of a state when they enter the loop at `step`, if they are noise."""
        if step:
            return None
        if self._scale is None:
            self._alone_of(condition)
        return self._scale if "noise" in self.capabilities else None

    def _rows_together(self, condition: Condition) -> bool | None:
        """How several rows of a condition go through the pipeline in one call.

        Rows with input images are tried on a silent denoiser: each must get the inputs that it gets alone.

        Returns:
            Whether input images are repeated for each row; None if rows must go one by one.
        """
        if self._whole or self._has_callback or self._cache or self.name in ONE_BY_ONE:
            return None
        call = self._calls.of(condition)
        if not has_media(call):
            return False
        key = self._calls.key(condition), frozenset(texts_of(call))
        if key not in self._together:
            alone = [self._first_inputs([condition], [seed], repeats=False) for seed in (1, 2)]
            self._together[key] = next(
                (
                    repeats
                    for repeats in (False, True)
                    if agree(alone, self._first_inputs([condition] * 2, [1, 2], repeats=repeats))
                ),
                None,
            )
        return self._together[key]

    def _first_inputs(
        self, conditions: Sequence[Condition], seeds: Sequence[int], *, repeats: bool
    ) -> Inputs | None:
        """The inputs that rows get from the pipeline, and how their generators are left; None if it fails."""
        generators = [generator_of(seed) for seed in seeds]
        call, _ = self._calls.batch(conditions, "latent", repeats=repeats)
        found = self._driver.first_inputs(call, generators)
        if found is None or found[1] is None:
            return None
        return Inputs([found[1], *found[0]], [generator.get_state() for generator in generators])

    def _batch(self, conditions: Sequence[Condition], output_type: str) -> tuple[dict[str, Any], bool]:
        """The arguments of a call for several rows; see `Calls.batch`."""
        repeats = len(conditions) > 1 and bool(self._rows_together(conditions[0]))
        return self._calls.batch(conditions, output_type, repeats=repeats)

    def _alone_of(self, condition: Condition) -> Alone:
        """The facts of a condition; they are found anew after a search was resumed."""
        if condition not in self._alone:
            self._entered(condition, [torch.Generator("cpu").manual_seed(0)])
        return self._alone[condition]

    def _known_levels(self, condition: Condition) -> list[Level]:
        levels = self._alone_of(condition).levels
        if levels is None:
            raise CapabilityError(
                f"Going back to an earlier step needs a scheduler with known noise levels but "
                f"{type(self._driver.scheduler).__name__} has none; use another scheduler, such as DDIM."
            )
        return levels

    def _group(self, condition: Condition) -> Hashable:
        """Rows whose conditions have the same key go through the pipeline in one call."""
        call = self._calls.of(condition)
        texts, rest = texts_of(call), self._calls.key(condition)
        encoded = self._alone_of(condition).encoded
        # a list of prompts would have to match images in number
        mixes = bool(texts) and not has_media(call) and all(shapes is not None for _, shapes in encoded)
        if mixes and self._lists_work(condition, (rest, frozenset(texts))):
            return rest, frozenset(texts), encoded
        return rest, frozenset(texts.items())

    def _lists_work(self, condition: Condition, key: Hashable) -> bool:
        """Whether the pipeline takes texts as lists; tried once, on an empty segment."""
        if key not in self._takes_lists:
            generators = [torch.Generator("cpu").manual_seed(0) for _ in range(2)]
            call, _ = self._calls.batch([condition] * 2, "latent", lists=True)
            try:
                segment = self._driver.run(call, start=0, stop=0, generators=generators, encode_by_row=True)
            except (TypeError, ValueError, AttributeError, RuntimeError, PipelineError) as error:
                if out_of_memory(error):
                    raise
                works = False
            else:
                works = segment.entered is not None and len(segment.entered) == 2
            self._takes_lists[key] = works
        return self._takes_lists[key]

    @staticmethod
    def _in_groups(
        state: State, key: Callable[[Condition], Hashable], work: Callable[[State], State]
    ) -> State:
        """`State.in_groups`, which asks for no key where all conditions are equal."""
        conditions = distinct(state.conditions)
        if len(conditions) == 1:
            return work(state)
        keys = {condition: key(condition) for condition in conditions}
        return state.in_groups(keys.__getitem__, work)

    def _run(
        self,
        conditions: Sequence[Condition],
        start: int,
        stop: int | None,
        *,
        output_type: str,
        latents: Tensor | None = None,
        scale: float | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        streams: Sequence[Tensor | None] | None = None,
        step: Step | None = None,
        vae: Any = None,
        phase: Phase = "denoise",
        watch: DecodeWatch | None = None,
        coarse: Coarse | None = None,
        caches: Caches | None = None,
        edits: Edits | None = None,
    ) -> Segment:
        call, mixed = self._batch(conditions, output_type)
        with self.meter.phase(phase):
            return self._driver.run(
                call,
                start=start,
                stop=stop,
                latents=latents,
                scale=scale,
                history=history,
                generators=generators,
                streams=streams,
                step=step,
                vae=vae,
                encode_by_row=mixed,
                watch=watch,
                coarse=coarse,
                caches=caches,
                edits=edits,
            )

    def _caches_of(self, state: State) -> Caches | None:
        """The caches of the denoisers, to continue from a state of one row; None where there are none."""
        if self._cache is None:
            return None
        denoisers = [module for _, module in modules(self._driver.pipe, DENOISERS)]
        return Caches(denoisers, unpack_tree(CACHES, state.carry, state.shared, self._device()))

    def _edits_of(self, state: State) -> Edits | None:
        """The edits of the user's callback that a state of one row continues from, if there are any."""
        found = unpack_tree(EDITS, state.carry, state.shared, self._device())
        return None if found is None else Edits(**found)

    def _device(self) -> torch.device:
        return self._driver.device


@dataclass(frozen=True)
class Alone:
    """The facts of a condition that an empty segment of it alone showed.

    Attributes:
        encoded: The encoders that ran, with the shapes of their inputs; see `Segment`.
        levels: Noise levels by step, where they are known.
        shape: Of a row of latents.
    """

    encoded: tuple[tuple[str, Shapes | None], ...]
    levels: list[Level] | None
    shape: torch.Size
