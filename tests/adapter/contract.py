"""The promises that the sampler keeps for every pipeline class, checked on one tiny pipeline.

Each check returns nothing and raises `AssertionError` where a promise is broken, so that tests and the
support table share them; `NotPromised` where there is nothing to check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny_pipelines import TinyPipeline
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.ledger import Ledger
from tts_vision.pipelines.callbacks import CALLBACK, INPUTS
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.driven import DENOISERS, modules
from tts_vision.pipelines.silence import denoised
from tts_vision.rng import row_seed
from tts_vision.types import Invalid, State, Video

PROMPT = Condition("two red circles")
STEPS = 4
ROLLOUT = "rollout:2"
SEED = 5


class NotPromised(Exception):
    """The sampler says by its capabilities that it does not do what a check is about."""


@dataclass
class Subject:
    """A pipeline under test, with its sampler, and the samples of its own call by seed."""

    entry: TinyPipeline
    pipe: Any
    sampler: DiffusersSampler
    counts: list[tuple[float, float, float]] = field(default_factory=list)
    """Of what `advance` ran: its price, what it was charged, and the evaluations that hooks counted."""
    _own: dict[tuple[int, str], Any] = field(default_factory=dict)
    _reproducible: bool | None = None

    @classmethod
    def of(cls, entry: TinyPipeline, **options: Any) -> Subject:
        pipe = entry.build()
        return cls(entry, pipe, DiffusersSampler(pipe, options=_options(entry, **options)))

    @property
    def whole(self) -> bool:
        return "whole" in self.sampler.capabilities

    def own(self, uid: int, output_type: str) -> Any:
        """The pipeline's own call from the seed of a particle."""
        key = uid, output_type
        if key not in self._own:
            call = {"num_inference_steps": STEPS, **self.entry.kwargs}
            self._own[key] = self.pipe(
                prompt=PROMPT.text,
                generator=torch.Generator("cpu").manual_seed(row_seed(SEED, uid)),
                output_type=output_type,
                return_dict=False,
                **call,
            )[0]
        return self._own[key]

    @property
    def reproducible(self) -> bool:
        """Whether the pipeline's own call gives the same sample again; some draw without their generator."""
        if self._reproducible is None:
            first = self.own(0, "latent")
            self._own.pop((0, "latent"))
            again = self.own(0, "latent")
            self._reproducible = bool(torch.equal(first, again))
        return self._reproducible

    def started(self, *uids: int) -> State:
        return self.sampler.init(PROMPT, list(uids), seed=SEED)

    def advance(self, state: State, steps: int) -> State:
        """The state some steps later, whose evaluations are counted."""
        counted = 0.0

        def count(module: Any, args: Any, kwargs: Any) -> None:
            nonlocal counted
            counted += len(denoised(args, kwargs))

        ledger = Ledger()
        self.sampler.bind(ledger)
        price = self.sampler.price(state, steps).nfe
        networks = [module for _, module in modules(self.pipe, DENOISERS)]
        handles = [network.register_forward_pre_hook(count, with_kwargs=True) for network in networks]
        ahead = self.sampler.advance(state, steps)
        for handle in handles:
            handle.remove()
        self.counts.append((price, ledger.spent.nfe, counted))
        return ahead


def _options(entry: TinyPipeline, **options: Any) -> SamplerOptions:
    return SamplerOptions(pipeline_kwargs={"num_inference_steps": STEPS, **entry.kwargs}, **options)


def stepwise_equals_whole(subject: Subject) -> None:
    """Step by step, in one go and the pipeline's own call give the same bits, and the same picture."""
    sampler = subject.sampler
    start = subject.started(0)
    whole = sampler.advance(start, sampler.num_steps)
    state = start
    while state.step < sampler.num_steps:
        state = sampler.advance(state)
    assert torch.equal(state.latents, whole.latents), _difference(state.latents, whole.latents)
    if not subject.whole:
        own = subject.own(0, "latent")
        if own.shape == state.latents.shape and not torch.equal(state.latents, own):
            assert not subject.reproducible, _difference(state.latents, own)
    assert _is_own(subject, sampler.decode(state)[0], 0, 0)


def rows_are_independent(subject: Subject) -> None:
    """Pruned, reordered and forked rows are what they are alone, and the own call makes them again."""
    sampler = subject.sampler
    half = sampler.num_steps // 2
    three = subject.advance(subject.started(0, 3, 1), half) if half else subject.started(0, 3, 1)
    rest = sampler.num_steps - half
    rows = [1, 1, 0] if half and sampler.last_noisy_step < 0 else [1, 0]
    finished = subject.advance(three.select(rows), rest)
    alone = subject.advance(subject.started(3), sampler.num_steps)
    scale = float(alone.latents.abs().max())
    for i in range(len(rows) - 1):
        assert float((finished.latents[i] - alone.latents[0]).abs().max()) <= 2e-3 * scale
    images = sampler.decode(finished)
    assert _is_own(subject, images[0], 3, 2) and _is_own(subject, images[-1], 0, 2)
    assert farthest(images[0], images[-1]) > 2


def cost_is_what_hooks_count(subject: Subject) -> None:
    """The price that a search plans with is the number of evaluations that hooks count."""
    if not subject.counts:
        subject.advance(subject.started(0, 1), subject.sampler.num_steps)
    for price, charged, counted in subject.counts:
        assert price == charged == counted > 0


def stochastic_steps_fork(subject: Subject) -> None:
    """With a stochastic rule forks differ, and the row that keeps its name stays what it is alone."""
    if "renoise" not in subject.sampler.capabilities:
        raise NotPromised
    sampler = DiffusersSampler(subject.pipe, options=_options(subject.entry, stochastic=True))
    half = max(1, sampler.num_steps // 2)
    if half > sampler.last_noisy_step:
        raise NotPromised
    state = sampler.advance(sampler.init(PROMPT, [0, 3], seed=SEED), half)
    rest = sampler.num_steps - half
    forks = sampler.advance(state.select([1, 1], uids=[3, 9]), rest).latents
    alone = sampler.advance(sampler.advance(sampler.init(PROMPT, [3], seed=SEED), half), rest).latents
    assert torch.isfinite(forks).all()
    assert float((forks[0] - alone[0]).abs().max()) <= 2e-3 * float(alone.abs().max())
    assert float((forks[0] - forks[1]).abs().max()) > 1e-3


def previews_decode(subject: Subject) -> None:
    """An unfinished sample has a preview and a rollout of the size of the sample, or none is promised."""
    sampler = subject.sampler
    if "preview" not in sampler.capabilities or sampler.num_steps < 2:
        raise NotPromised
    state = sampler.advance(subject.started(0), sampler.num_steps - 1)
    preview = sampler.preview(state)[0]
    finished = sampler.decode(sampler.advance(state))[0]
    assert _values(preview).shape == _values(finished).shape
    ledger, rollouts = (
        Ledger(),
        DiffusersSampler(subject.pipe, options=_options(subject.entry, preview=ROLLOUT)),
    )
    rollouts.bind(ledger)
    early = rollouts.advance(rollouts.init(PROMPT, [0], seed=SEED))
    before = ledger.spent.nfe
    assert _values(rollouts.preview(early)[0]).shape == _values(finished).shape
    assert ledger.spent.nfe - before == rollouts.preview_cost(PROMPT, early.step).nfe > 0


def callbacks_are_carried(subject: Subject) -> None:
    """All tensors that a callback edits are those of the steps after it, in its segment and in the next."""
    kind = type(subject.pipe)
    asked = list(getattr(kind, "_callback_tensor_inputs", ["latents"]))
    if subject.whole or not {CALLBACK, INPUTS} <= inspect.signature(kind.__call__).parameters.keys():
        raise NotPromised

    def edit(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: _edited(value) for name, value in tensors.items()} if step in (1, 2) else {}

    settings = {**subject.entry.kwargs, CALLBACK: edit, INPUTS: asked}
    sampler = DiffusersSampler(subject.pipe, options=_options(replace(subject.entry, settings=settings)))
    start = state = sampler.init(PROMPT, [0], seed=SEED)
    # the first edit is the last that its segment does, the second is followed by a step
    while state.step < sampler.num_steps:
        state = sampler.advance(state, 1 if state.step < 2 else sampler.num_steps - state.step)
    call = {"num_inference_steps": STEPS, **settings, "return_dict": False, "output_type": "latent"}
    generator = torch.Generator("cpu").manual_seed(row_seed(SEED, 0))
    expected = subject.pipe(prompt=PROMPT.text, generator=generator, **call)[0]
    if expected.shape != state.latents.shape or not subject.reproducible:
        expected = sampler.advance(start, sampler.num_steps).latents
    assert torch.equal(state.latents, expected), _difference(state.latents, expected)


def _edited(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_edited, value))
    return value * 1.25 if isinstance(value, Tensor) and value.is_floating_point() else value


CHECKS: dict[str, Callable[[Subject], None]] = {
    "stepwise = own call": stepwise_equals_whole,
    "rows": rows_are_independent,
    "nfe": cost_is_what_hooks_count,
    "stochastic": stochastic_steps_fork,
    "preview": previews_decode,
    "callback": callbacks_are_carried,
}
"""All checks by the heading of their column in the support table."""


def _is_own(subject: Subject, media: Any, uid: int, tolerance: int) -> bool:
    """Whether a sample is that of the pipeline's own call, if the call makes the same sample twice."""
    return farthest(media, _sample(subject, uid)) <= tolerance or not subject.reproducible


def _sample(subject: Subject, uid: int) -> Any:
    """A sample of the pipeline's own call, as the sampler decodes it."""
    if subject.sampler.modality == "image":
        return subject.own(uid, "pil")[0]
    clip = subject.own(uid, "pt")[0]
    clip = torch.as_tensor(clip)
    return Video((clip.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1), 8.0)


def farthest(a: Any, b: Any) -> int:
    """The largest difference of two images or clips, of 255."""
    first, second = (_values(m) for m in (a, b))
    assert first.shape == second.shape
    return int(np.abs(first - second).max())


def _values(media: Any) -> np.ndarray:
    assert not isinstance(media, Invalid), media.reason
    return (media.frames.numpy() if isinstance(media, Video) else np.asarray(media)).astype(int)


def _difference(a: Tensor, b: Tensor) -> str:
    return f"differ by {float((a.float() - b.float()).abs().max()):.3g} of {float(b.float().abs().max()):.3g}"
