"""Tests on a user's own model, precision and device that a search there keeps the toolkit's promises."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, live_name
from tts_vision.errors import CapabilityError, ConfigError, TTSVisionError
from tts_vision.ledger import Ledger, peak_memory
from tts_vision.media import pixels
from tts_vision.metadata import version_of
from tts_vision.resolve import Live, find_sampler, find_verifier, load_model, load_verifier
from tts_vision.runner import search
from tts_vision.sampler import Sampler
from tts_vision.scoring import safe_scores
from tts_vision.types import Cost, Decoded, Invalid, Media, Prompt, State
from tts_vision.verifier import Verifier, as_verifier

Verdict: TypeAlias = Literal["holds", "broken", "measured", "skipped"]
PROMPT = "two red circles left of a blue star"
TOLERANCE = {torch.float32: 1, torch.bfloat16: 8, torch.float16: 4}
"""Largest difference, of 255, that other sizes of a batch may make, by precision."""
ROWS = 3
MICRO_BATCHES = (1, 2, 4)
_VERSIONS = ("tts-vision", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Line:
    """One result.

    Attributes:
        name: The promise, or the quantity.
        verdict: Whether it holds; or that it was only measured, or could not be.
        value: The figures.
    """

    name: str
    verdict: Verdict
    value: str


@dataclass(frozen=True)
class Report:
    """All results.

    Attributes:
        model: The model.
        setting: Precision, device, steps, versions.
        lines: In order.
    """

    model: str
    setting: Mapping[str, str]
    lines: list[Line]

    @property
    def holds(self) -> bool:
        """Whether no promise is broken."""
        return all(line.verdict != "broken" for line in self.lines)

    def text(self) -> str:
        """The results as plain text, for a bug report."""
        width = max(len(line.name) for line in self.lines)
        head = [f"tts-vision check {self.model}", ", ".join(f"{k} {v}" for k, v in self.setting.items()), ""]
        return "\n".join([*head, *(f"{x.verdict:9}{x.name:{width}}  {x.value}" for x in self.lines)])

    def as_json(self) -> dict[str, Any]:
        """The results as JSON has them."""
        return {**asdict(self), "holds": self.holds}


def check(
    pipe_or_id: Any,
    prompt: str = PROMPT,
    *,
    verifier: Any = None,
    samples: int = 8,
    seed: int = 0,
    pipeline_kwargs: Mapping[str, Any] | None = None,
    model_options: ModelOptions | None = None,
    progress: Callable[[Line], None] = lambda line: None,
) -> Report:
    """Tests the toolkit's promises on a model, and measures what a search on it costs.

    Takes about the time of ten samples and one search of four.

    Args:
        pipe_or_id: As in `search`.
        prompt: What to generate.
        verifier: As in `search`; what is measured of it is left out without one.
        samples: Samples for the figures on previews and scores, at least 3.
        seed: Root seed.
        pipeline_kwargs: As in `search`.
        model_options: As in `search`.
        progress: Called after each result.

    Raises:
        ConfigError: If something cannot be used as given.
        PipelineError: If the model cannot be driven.
    """
    if samples < ROWS:
        raise ConfigError(f"A check needs at least {ROWS} samples but got {samples}; raise it.")
    named = isinstance(pipe_or_id, (str, Path))
    config = RunConfig(
        prompt=prompt,
        model=str(pipe_or_id) if named else live_name(pipe_or_id),
        model_options=model_options or ModelOptions(),
        sampler_options=SamplerOptions(
            pipeline_kwargs=dict(pipeline_kwargs or {}),
            stochastic=None if isinstance(pipe_or_id, Sampler) else False,
        ),
        verifier="none" if verifier is None or not isinstance(verifier, str) else verifier,
    )
    judge: Verifier | None = None
    if verifier is not None:
        judge = load_verifier(find_verifier(verifier)) if isinstance(verifier, str) else as_verifier(verifier)
    pipe = load_model(config) if named else pipe_or_id
    sampler = find_sampler(config, Live(pipe=pipe), stochastic=False)
    return _Check(config, pipe, sampler, judge, samples, seed, progress).run()


class _Check:
    """The tests, in order; each adds its lines."""

    def __init__(
        self,
        config: RunConfig,
        pipe: Any,
        sampler: Sampler,
        judge: Verifier | None,
        samples: int,
        seed: int,
        progress: Callable[[Line], None],
    ) -> None:
        self.config, self.pipe, self.sampler, self.judge = config, pipe, sampler, judge
        self.samples, self.seed, self.progress = samples, seed, progress
        self.prompt = Prompt(config.prompt)
        self.condition = sampler.condition_of(self.prompt)
        self.lines: list[Line] = []
        self.ledger = Ledger()
        sampler.bind(self.ledger)

    def run(self) -> Report:
        with torch.no_grad():
            for test in (self.plan, self.stepwise, self.forks, self.batches, self.evaluations):
                test()
            for measure in (self.speed, self.quality, self.memory, self.overhead):
                measure()
        return Report(self.config.model, self._setting(), self.lines)

    def plan(self) -> None:
        sampler = self.sampler
        cost = sampler.cost(self.condition, 0, sampler.num_steps)
        facts = f"{sampler.num_steps} steps, {cost.nfe:g} nfe a sample"
        facts += f", {cost.macs / 1e9:.4g} GMAC" if cost.macs else ""
        self._add("plan", "measured", f"{facts}; {', '.join(sorted(sampler.capabilities))}")

    def stepwise(self) -> None:
        """Driven step by step, a sample is that of the generator's own call, from the row's own seed."""
        try:
            whole = [self.sampler.plain(self.condition, [uid], seed=self.seed)[0] for uid in (0, 1)]
        except CapabilityError as error:
            self._add("own call", "skipped", str(error))
            return
        for uid, expected in zip((0, 1), whole):
            state = self.sampler.init(self.condition, [uid], seed=self.seed)
            while state.step < self.sampler.num_steps:
                state = self.sampler.advance(state)
            self._compare(f"stepwise = own call, row {uid}", [expected], self._decode(state), 0)
        at_once = self.sampler.advance(
            self.sampler.init(self.condition, [0], seed=self.seed), self.sampler.num_steps
        )
        self._compare("whole = own call", whole[:1], self._decode(at_once), 0)

    def forks(self) -> None:
        """Rows that are dropped, doubled and reordered half-way end as they would have."""
        state = self._init(range(ROWS))
        half = max(1, self.sampler.num_steps // 2)
        middle = self.sampler.advance(state, half)
        rest = self.sampler.num_steps - half
        finished = self._decode(self.sampler.advance(middle, rest))
        index = [ROWS - 1, 0, 0]
        forked = self._decode(self.sampler.advance(middle.select(index), rest))
        self._compare("forked and pruned rows", [finished[i] for i in index], forked, self._tolerance)
        if self.sampler.last_noisy_step >= half:
            twins = middle.select([0, 0], uids=(0, ROWS))
            first, second = self._decode(self.sampler.advance(twins, rest))
            same = _difference(first, second) == 0
            told = "copies of a particle are equal" if same else "copies of a particle diverge"
            self._add("forks differ", "broken" if same else "holds", told)

    def batches(self) -> None:
        """A row does not depend on the others."""
        together = self._decode(self.sampler.advance(self._init(range(ROWS)), self.sampler.num_steps))
        alone = [
            self._decode(self.sampler.advance(self._init([uid]), self.sampler.num_steps))[0]
            for uid in range(ROWS)
        ]
        self._compare("rows alone = rows together", alone, together, self._tolerance)
        again = self._decode(self.sampler.advance(self._init(range(ROWS)), self.sampler.num_steps))
        self._compare("the same twice", together, again, 0)

    def evaluations(self) -> None:
        """What is charged is what the network is asked."""
        networks = _networks(self.pipe)
        if not networks:
            self._add("nfe by hooks", "skipped", "the model has no denoiser that is known by name")
            return
        counted = [0]

        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim)
            counted[0] += len(first)

        rows = 1 if self.sampler.shares_forwards else 2
        state = self._init(range(rows))  # before counting, because a plan may ask the loop
        expected = self.sampler.cost(self.condition, 0, self.sampler.num_steps) * rows
        self.ledger.spent = Cost()
        hooks = [network.register_forward_pre_hook(count, with_kwargs=True) for network in networks]
        try:
            self.sampler.advance(state, self.sampler.num_steps)
        finally:
            for hook in hooks:
                hook.remove()
        charged = self.ledger.spent.nfe
        if not counted[0] and charged == expected.nfe:
            told = f"{charged:g} charged and planned; the denoiser is not called as a module"
            self._add("nfe by hooks", "skipped", told)
            return
        right = counted[0] == charged == expected.nfe
        told = f"{counted[0]} rows of forwards, {charged:g} charged, {expected.nfe:g} planned"
        self._add("nfe by hooks", "holds" if right else "broken", told)

    def speed(self) -> None:
        state = self._init([0, 1])
        with _seconds() as took:
            state = self.sampler.advance(state, self.sampler.num_steps)
        per_step = took[0] / self.sampler.num_steps / 2
        with _seconds() as decoding:
            media = self._decode(state)
        self._add("seconds", "measured", f"{per_step:.4f} a step and row, {decoding[0] / 2:.4f} a decode")
        if self.judge is not None:
            usable = _usable(media)
            self.judge.load()
            safe_scores(self.judge, usable[:1], [self.prompt] * len(usable[:1]))
            with _seconds() as judging:
                safe_scores(self.judge, usable, [self.prompt] * len(usable))
            each = judging[0] / max(1, len(usable))
            self._add("seconds of the verifier", "measured", f"{each:.4f} a sample")

    def quality(self) -> None:
        """How previews rank their outcome, which searches live on, and how the verifier spreads."""
        if self.judge is None:
            self._add("previews and verifier", "skipped", "no verifier was given (--verifier)")
            return
        steps = sorted({max(1, round(self.sampler.num_steps * share)) for share in (0.25, 0.5, 0.75)})
        state = self._init(range(self.samples))
        previews: dict[int, list[float]] = {}
        for step in steps:
            if step >= self.sampler.num_steps:
                continue
            state = self.sampler.advance(state, step - state.step)
            if "preview" in self.sampler.capabilities:
                previews[step] = self._scores(self.sampler.preview(state))
        state = self.sampler.advance(state, self.sampler.num_steps - state.step)
        final = self._scores(self._decode(state))
        known = [value for value in final if not math.isnan(value)]
        spread = f"{len(known)} of {len(final)} samples scored"
        if known:
            spread += f": mean {np.mean(known):.4g}, spread {np.std(known):.3g}"
            spread += f", {min(known):.4g} to {max(known):.4g}"
        silent = len(known) < 2 or np.std(known) == 0
        self._add(f"verifier {self.judge.name}", "broken" if silent else "measured", spread)
        ranks = [f"{step}: {_rank_correlation(scores, final)}" for step, scores in previews.items()]
        told = ", ".join(ranks) or "the sampler makes no previews"
        self._add("rank correlation of previews, by step", "measured" if ranks else "skipped", told)

    def memory(self) -> None:
        found = []
        for rows in MICRO_BATCHES:
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
            try:
                self._decode(self.sampler.advance(self._init(range(rows)), self.sampler.num_steps))
            except (RuntimeError, MemoryError) as error:
                found.append(f"{rows}: {type(error).__name__}")
                break
            found.append(f"{rows}: {peak_memory() / 2**30:.2f}")
        of = "allocated on the device" if torch.cuda.is_initialized() else "of the process, which never falls"
        self._add("peak GiB by rows at once", "measured", f"{', '.join(found)} ({of})")

    def overhead(self) -> None:
        """A search for best of n against the generator's own call."""
        n = 4
        try:
            with _seconds() as bare:
                self.sampler.plain(self.condition, range(n), seed=self.seed)
        except (CapabilityError, ValueError, RuntimeError) as error:
            self._add("overhead", "skipped", str(error).splitlines()[0])
            return
        try:
            with _seconds() as whole:
                search(
                    self.pipe,
                    self.config.prompt,
                    algorithm=f"best_of_n:n={n}",
                    verifier=lambda media, prompts: [0.0] * len(media),
                    budget=f"{n}x",
                    seed=self.seed,
                    sampler_options=self.config.sampler_options,
                )
        except TTSVisionError as error:
            self._add(f"a search of {n} samples", "broken", str(error))
            return
        told = (
            f"{whole[0] / bare[0]:.2f} times the own call of {n} samples ({bare[0]:.2f} s), with its set-up"
        )
        self._add("overhead of a search", "measured", told)

    # Parts

    @property
    def _tolerance(self) -> int:
        return TOLERANCE.get(self._dtype, 1)

    @property
    def _dtype(self) -> torch.dtype:
        parameter = next((p for n in _networks(self.pipe) for p in n.parameters()), None)
        return torch.float32 if parameter is None else parameter.dtype

    def _init(self, uids: Sequence[int]) -> State:
        return self.sampler.init(self.condition, tuple(uids), seed=self.seed)

    def _decode(self, state: State) -> list[Decoded]:
        return list(self.sampler.decode(state))

    def _scores(self, decoded: Sequence[Decoded]) -> list[float]:
        assert self.judge is not None
        media = _usable(decoded)
        found = iter(safe_scores(self.judge, media, [self.prompt] * len(media)))
        return [math.nan if isinstance(d, Invalid) else next(found).value for d in decoded]

    def _compare(
        self, name: str, expected: Sequence[Decoded], found: Sequence[Decoded], tolerance: int
    ) -> None:
        largest = max(_difference(a, b) for a, b in zip(expected, found, strict=True))
        told = "same pixels" if largest == 0 else f"largest difference {largest:g} of 255"
        if math.isinf(largest):
            told = "other sizes"
        told += f" ({tolerance} allowed in {self._dtype})".replace("torch.", "") if tolerance else ""
        if any(isinstance(each, Invalid) for each in (*expected, *found)):
            told += "; some samples are invalid"
        self._add(name, "holds" if largest <= tolerance else "broken", told)

    def _add(self, name: str, verdict: Verdict, value: str) -> None:
        self.lines.append(Line(name, verdict, value))
        self.progress(self.lines[-1])

    def _setting(self) -> dict[str, str]:
        device = str(self.sampler.facts(self.condition).get("device", "cpu"))
        if device.startswith("cuda"):
            device = torch.cuda.get_device_name()
        versions = {name: version_of(name) or "unknown" for name in _VERSIONS}
        dtype = str(self._dtype).removeprefix("torch.")
        return {"dtype": dtype, "device": device, "python": platform.python_version(), **versions}


def _networks(pipe: Any) -> list[torch.nn.Module]:
    """The denoisers of a pipeline, by the names that diffusers gives them."""
    names = ("unet", "transformer", "transformer_2", "prior", "denoiser")
    found = [getattr(pipe, name, None) for name in names]
    return [network for network in found if isinstance(network, torch.nn.Module)]


def _usable(decoded: Sequence[Decoded]) -> list[Media]:
    return [each for each in decoded if not isinstance(each, Invalid)]


def _difference(a: Decoded, b: Decoded) -> float:
    """The largest difference of pixels, of 255; infinite for other sizes."""
    first, second = (each.media if isinstance(each, Invalid) else each for each in (a, b))
    if first is None or second is None:
        return 0.0 if first is second else math.inf
    x, y = pixels(first).astype(int), pixels(second).astype(int)
    return float(np.abs(x - y).max()) if x.shape == y.shape else math.inf


def _rank_correlation(previews: Sequence[float], final: Sequence[float]) -> str:
    pairs = [(p, f) for p, f in zip(previews, final) if not (math.isnan(p) or math.isnan(f))]
    if len({p for p, _ in pairs}) < 2 or len({f for _, f in pairs}) < 2:
        return "-"
    return f"{spearmanr(*zip(*pairs)).statistic:.2f}"


@contextmanager
def _seconds() -> Iterator[list[float]]:
    """Wall-clock seconds of the block, its work on the accelerator included."""
    took = [0.0]
    _wait()
    start = time.perf_counter()
    yield took
    _wait()
    took[0] = time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
