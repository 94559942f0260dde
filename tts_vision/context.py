"""What a search algorithm sees: operations that charge, trace, micro-batch, store and resume."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tts_vision.calibration import preview_pairs, spearman
from tts_vision.errors import (
    BudgetSpent,
    CapabilityError,
    ConfigError,
    ForkError,
    PipelineError,
    StorageError,
)
from tts_vision.features import load_extractor
from tts_vision.gradients import (
    carried,
    differentiable_sampler,
    differentiable_verifier,
    safe_rewards,
    with_gradient,
)
from tts_vision.journal import Journal
from tts_vision.ledger import Ledger, Remaining
from tts_vision.media import read_media, write_media
from tts_vision.mutations import Mutation, describe, noise_shape
from tts_vision.rng import choice_generator, row_noise, row_seed
from tts_vision.scoring import calls_of, safe_scores
from tts_vision.tokens import distinct
from tts_vision.trace import (
    Advance,
    Checkpoint,
    Decode,
    Done,
    Embedded,
    Event,
    Gradient,
    Init,
    Measure,
    Mutate,
    Note,
    Renoise,
    Scored,
    Select,
)
from tts_vision.types import (
    Anchor,
    Cost,
    DifferentiableSampler,
    DifferentiableVerifier,
    FeatureExtractor,
    Media,
    PooledVerifier,
    PreviewVerifier,
    Prompt,
    Sampler,
    Score,
    State,
    Verifier,
)


@dataclass
class Candidate:
    """A sample that a search decoded and scored.

    Attributes:
        uid: The particle.
        score: The verifier's verdict.
        step: The step it was decoded at; less than the sampler's `num_steps` for a preview.
        media: The pixels, or None while they are only in `path`.
        path: Where the sample is stored, if anywhere.
        text: What to say about the sample inside its file.
    """

    uid: int
    score: Score
    step: int
    media: Media | None = None
    path: Path | None = None
    text: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Media:
        """The pixels.

        Raises:
            ConfigError: If they were not kept.
        """
        if self.media is not None:
            return self.media
        if self.path is None:
            raise ConfigError(
                f"A sample must have been kept but that of particle {self.uid} was not; search with an "
                "output folder."
            )
        return read_media(self.path)

    def save(self, path: Path | str) -> None:
        """Writes the sample to `path`, with `text` in it where the format has room for that."""
        write_media(self.load(), Path(path), self.text)


class MediaStore:
    """Where finished samples go: in memory; the result folder has a subclass that writes files."""

    def save(self, uid: int, media: Media, score: Score, *, settled: bool = True) -> str | None:
        """Stores a finished sample; returns its name, if it has one.

        Args:
            uid: The particle.
            media: The sample.
            score: Its verdict.
            settled: Whether the value of the verdict is final.
        """
        return None

    def path(self, name: str) -> Path | None:
        """The file that `save` named."""
        return None


class SearchContext:
    """The operations a search algorithm is written in.

    Every operation is numbered and recorded; a search that was killed is run again and gets its
    recorded answers until it reaches what was never answered.

    Attributes:
        num_steps: Decision steps of a whole trajectory.
        capabilities: What the sampler can do.
        ledger: The budget and what is spent.
        candidates: Finished and scored samples by uid, in the order they were scored.
        best: The finished sample with the highest score so far.
        best_preview: The unfinished one; matters only when a budget ends before anything is finished.
        max_batch: Rows computed at once; shrinks when memory runs out.
        chunk: How many samples to plan at a time. Unlike `max_batch` it never changes, so that a resumed
            search plans as before.
    """

    def __init__(
        self,
        sampler: Sampler,
        verifier: Verifier,
        prompt: Prompt,
        *,
        seed: int,
        ledger: Ledger | None = None,
        journal: Journal | None = None,
        store: MediaStore | None = None,
        max_batch: int | None = None,
        observer: Callable[[SearchContext, Event], None] | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.num_steps = sampler.num_steps
        self.capabilities = sampler.capabilities
        self.candidates: dict[int, Candidate] = {}
        self.best: Candidate | None = None
        self.best_preview: Candidate | None = None
        self.max_batch = max_batch
        self.chunk = max_batch or 16
        self._sampler, self._verifier, self._prompt, self._seed = sampler, verifier, prompt, seed
        self._journal = journal or Journal()
        self._store = store or MediaStore()
        self._observer = observer
        self._op = 0
        self._next_uid = 0
        self._embeds = False
        self._embeddings: list[State] = []
        # where features are in use: what was decoded at one step, by uid; None if a former session did
        self._decoded: dict[int, Media | None] = {}
        self._decoded_step = 0
        sampler.bind(self.ledger)

    # What a plan needs to know

    @property
    def can_fork(self) -> bool:
        """Whether copies of a particle would diverge."""
        return self._sampler.last_noisy_step >= 0

    def can_fork_at(self, step: int) -> bool:
        """Whether copies made at `step` would diverge."""
        return step <= self._sampler.last_noisy_step

    def cost(
        self, steps: int | None = None, *, scored: bool = True, step: int = 0, gradient: bool = False
    ) -> Cost:
        """What one particle costs from `step` on for `steps` steps (by default to the end), and its score.

        With `gradient`, what `gradient` costs for them.
        """
        probe = State(torch.empty(1), step, (0,), self._prompt, self._seed)
        steps = self.num_steps - step if steps is None else steps
        if gradient:
            sampler = differentiable_sampler(self._sampler, "a gradient")
            cost = sampler.gradient_cost(probe, steps) + self.score_cost
        else:
            cost = self._sampler.cost(probe, steps)
        return cost + self.score_cost if scored else cost

    @property
    def score_cost(self) -> Cost:
        """What it costs to decode and score one sample."""
        return Cost(decodes=1, verifier_calls=sum(calls_of(self._verifier, 1).values()))

    def affordable(self, each: Cost) -> int | None:
        """How many times `each` can still be spent; None without a limit."""
        return self.remaining().times(each)

    def remaining(self) -> Remaining:
        """What is left of the budget, to plan with.

        Recorded when time is limited, because a resumed search must plan as it did.
        """
        left = self.ledger.remaining()
        if left.seconds is None:
            return left
        op, past = self._begin("note")
        if past:
            return Remaining(**{k: v for e in past if e.kind == "note" for k, v in e.values.items()})
        self._record(Note(op=op, values={k: float(v) for k, v in asdict(left).items() if v is not None}))
        return left

    def extractor(self, name: str) -> FeatureExtractor:
        """What embeds samples, by its name, with parameters as ``name:key=value``; for `features`.

        Raises:
            ConfigError: If there is none, or it does not embed what the sampler makes.
            VerifierError: If it cannot be loaded.
        """
        extractor = load_extractor(name)
        if self._sampler.modality not in extractor.accepts:
            raise ConfigError(
                f"Features {extractor.name!r} are of {' and '.join(sorted(extractor.accepts))} but "
                f"{self._sampler.name!r} makes {self._sampler.modality}; choose others."
            )
        self._embeds = True
        return extractor

    def rng(self) -> np.random.Generator:
        """A generator for the algorithm's own next choice, fixed by the seed and the operation number."""
        return choice_generator(self._seed, self._op)

    # Operations

    def init(self, n: int) -> State:
        """`n` fresh particles at step 0."""
        if n < 1:
            raise ConfigError(f"A population must have at least 1 particle but got {n}; raise it.")
        op, past = self._begin("init")
        _check_repeats(not past or len(past[0].uids) == n)
        uids = self._new_uids(n)
        parts = [
            self._sampler.init(self._prompt, uids[a:b], seed=self._seed).to("cpu")
            for a, b in self._batches(n)
        ]
        if not past:
            self._record(Init(op=op, uids=uids, seeds=tuple(row_seed(self._seed, uid) for uid in uids)))
        return State.cat(parts)

    def advance(self, state: State, steps: int = 1) -> State:
        """The state `steps` steps later.

        Raises:
            BudgetSpent: If the steps cannot be paid for; ends the search.
        """
        self._check_steps(state, steps, least=0)
        op, past = self._begin("advance")
        if not steps:
            return state
        step, done = state.step + steps, self._recorded_rows(past, state, state.step + steps)
        shared = self._sampler.cost(state, 1) if "tokens" in self.capabilities else None
        for a, b in self._missing_rows(done, state, self._sampler.cost(state, steps), shared=shared):
            part = self._advance_rows(state.select(range(a, b)), steps)
            done[a], blob = self._journal.save(part, op, a)
            self._record(Advance(op=op, uids=part.uids, from_step=state.step, step=step, first=a, blob=blob))
        return State.cat([done[first] for first in sorted(done)])

    def gradient(self, state: State, steps: int = 1) -> tuple[State, Tensor]:
        """The state `steps` steps later, carrying the gradient of its reward; and the rewards.

        The reward is that of the finished sample, or before the end that of its preview as the last of the
        steps saw it: over one step, the preview of `state` itself. The gradient, by the latents of `state`,
        is carried for mutations to use; see `tts_vision.gradients`. Going back through a step is charged
        like going forth, and a call of the verifier for each row.

        Returns:
            The state and ``(B,)`` float64 rewards; NaN, with a gradient of 0, where there is none.

        Raises:
            BudgetSpent: If it cannot be paid for; ends the search.
            CapabilityError: If the sampler or the verifier gives no gradients.
        """
        self._check_steps(state, steps, least=1)
        sampler = differentiable_sampler(self._sampler, "a gradient")
        verifier = differentiable_verifier(self._verifier, "a gradient")
        step = state.step + steps
        if step < self.num_steps:
            self._require("preview", f"the gradient of a preview at step {step} of {self.num_steps}")
        op, past = self._begin("gradient")
        done = self._recorded_rows(past, state, step)
        values = {event.first: event.values for event in past if event.kind == "gradient"}
        cost = sampler.gradient_cost(state, steps)
        backwards = cost.nfe - sampler.cost(state, steps).nfe
        for a, b in self._missing_rows(done, state, cost + self.score_cost):
            self.ledger.charge(Cost(decodes=b - a))
            self.ledger.charge_calls(calls_of(self._verifier, b - a))
            part, reasons = self._gradient_rows(sampler, verifier, state.select(range(a, b)), steps)
            values[a] = tuple(carried(part, "reward").tolist())
            done[a], blob = self._journal.save(part, op, a)
            self._record(
                Gradient(
                    op=op,
                    uids=part.uids,
                    from_step=state.step,
                    step=step,
                    first=a,
                    blob=blob,
                    values=values[a],
                    reasons=reasons,
                    backwards=backwards * (b - a),
                )
            )
        rewards = [value for first in sorted(values) for value in values[first]]
        return State.cat([done[first] for first in sorted(done)]), torch.tensor(rewards, dtype=torch.float64)

    def measure(self, state: State, key: str) -> Tensor:
        """The numbers that the rows of a state carry under `key`, ``(B,)`` float64.

        Recorded, so that a resumed search knows them where the tensors are gone.
        """
        op, past = self._begin("measure")
        for event in past:
            if event.kind == "measure":
                _check_repeats((event.key, event.uids) == (key, state.uids))
                return torch.tensor(event.values, dtype=torch.float64)
        if state.is_ghost:
            _check_repeats(False)
        values = carried(state, key).double()
        self._record(Measure(op=op, uids=state.uids, step=state.step, key=key, values=tuple(values.tolist())))
        return values

    def finish(self, state: State) -> State:
        """The state at the end of its trajectory."""
        return self.advance(state, self.num_steps - state.step)

    def select(self, state: State, index: Sequence[int]) -> State:
        """Rows at `index`: prune, reorder, resample.

        The first copy of a row keeps its identity; further copies are forks with a noise stream of
        their own.

        Raises:
            ForkError: If a row is duplicated and nothing later could make the copies differ.
        """
        op, past = self._begin("select")
        if len(set(index)) < len(index) and not self.can_fork_at(state.step):
            last = self._sampler.last_noisy_step
            raise ForkError(
                "Copies of a particle must be able to differ, but "
                + (
                    f"no step after {last} adds noise and this is step {state.step}"
                    if self.can_fork
                    else f"sampler {self._sampler.name!r} adds no noise after its start"
                )
                + "; build it with stochastic=True, fork earlier, or use ctx.mutate or ctx.renoise."
            )
        seen: set[int] = set()
        uids = []
        for i in index:
            uids.append(state.uids[i] if i not in seen else self._new_uids(1)[0])
            seen.add(i)
        parents = tuple(state.uids[i] for i in index)
        self._record_birth(Select(op=op, uids=tuple(uids), parents=parents, step=state.step), past)
        return state.select(index, uids)

    def mutate(self, state: State, mutation: Mutation, parents: Sequence[int] | None = None) -> State:
        """Children of the rows `parents` (by default each row once), made by `mutation`.

        Raises:
            CapabilityError: If the sampler cannot be mutated that way.
        """
        self._require(mutation.needs, f"mutation {mutation.name!r}")
        if mutation.needs == "noise" and state.step:
            raise ConfigError(
                f"Mutation {mutation.name!r} acts on initial noise, step 0, but the state is at step "
                f"{state.step}; use StepNoise there."
            )
        op, past = self._begin("mutate")
        index = range(len(state)) if parents is None else parents
        uids = self._new_uids(len(index))
        parents = tuple(state.uids[i] for i in index)
        event = Mutate(op=op, uids=uids, parents=parents, step=state.step, mutation=describe(mutation))
        self._record_birth(event, past)
        return apply_mutation(mutation, state.select(index, uids))

    def renoise(self, state: State, to_step: int, parents: Sequence[int] | None = None) -> State:
        """Children of the rows `parents`, sent back to the earlier `to_step` with fresh noise.

        Raises:
            CapabilityError: If the sampler cannot go back.
        """
        self._require("renoise", "going back to an earlier step")
        if not 0 <= to_step < state.step:
            raise ConfigError(
                f"Renoising must go to an earlier step but got {to_step} from step {state.step}; lower it."
            )
        op, past = self._begin("renoise")
        index = range(len(state)) if parents is None else parents
        uids = self._new_uids(len(index))
        parents = tuple(state.uids[i] for i in index)
        event = Renoise(op=op, uids=uids, parents=parents, step=to_step, from_step=state.step)
        self._record_birth(event, past)
        children = state.select(index, uids)
        if children.is_ghost:
            return replace(children, step=to_step)
        return replace(self._sampler.renoise(children, to_step).to("cpu"), keepalive=children.keepalive)

    def score(self, state: State) -> Tensor:
        """Scores of the finished samples, or of previews of unfinished ones.

        A finished particle that was scored before is not scored again.

        Returns:
            ``(B,)`` float64; NaN where a sample could not be scored.

        Raises:
            BudgetSpent: If not all can be paid for; those that can be are scored first.
            CapabilityError: If the state is unfinished and the sampler has no preview.
        """
        preview = state.step < self.num_steps
        if preview:
            self._require("preview", f"scoring at step {state.step} of {self.num_steps}")
        op, past = self._begin("score")
        todo = list(range(len(state)))
        if not preview:
            first_of: dict[int, int] = {}
            for i in todo:
                first_of.setdefault(state.uids[i], i)
            todo = [i for uid, i in first_of.items() if uid not in self.candidates]
        if past:
            verdicts = self._recorded_scores(past)
            _check_repeats(set(verdicts) <= set(state.uids))
        elif self._journal.is_spent:
            verdicts = {}
        else:
            left, each = self.ledger.remaining(), self.score_cost
            # a limit of time says nothing before anything was measured
            paid = (left if left.forecast(each) else replace(left, seconds=None)).times(each)
            pay = todo if paid is None else todo[:paid]
            verdicts = self._score_rows(op, state.select(pay), preview) if pay else {}
        if any(state.uids[i] not in verdicts for i in todo):
            raise BudgetSpent
        if not preview:
            return self.standing(state)
        return torch.tensor([verdicts[uid].value for uid in state.uids], dtype=torch.float64)

    def standing(self, state: State) -> Tensor:
        """The scores of finished particles as they stand now; costs nothing.

        Where a verifier compares samples with each other (`PooledVerifier`), they change as samples are
        added; an algorithm that compares new samples with old ones asks for both anew.

        Returns:
            ``(B,)`` float64; NaN where a sample could not be scored.
        """
        return torch.tensor([self.candidates[u].score.value for u in state.uids], dtype=torch.float64)

    def features(self, state: State, extractor: FeatureExtractor) -> Tensor:
        """Embeddings of the finished samples, or of previews of unfinished ones.

        A sample is decoded once at each step, whether it is embedded, scored or both.

        Args:
            state: Particles.
            extractor: What `extractor` returned.

        Returns:
            ``(B, D)`` float32.

        Raises:
            BudgetSpent: If decoding cannot be paid for.
            CapabilityError: If the state is unfinished and the sampler has no preview.
            VerifierError: If a sample cannot be embedded.
        """
        preview = state.step < self.num_steps
        if preview:
            self._require("preview", f"features at step {state.step} of {self.num_steps}")
        self._embeds = True
        op, past = self._begin("features")
        for event in past:
            if event.kind == "features":
                asked = (extractor.name, state.uids, state.step)
                _check_repeats((event.extractor, event.uids, event.step) == asked)
                rows = self._journal.load(event.blob, state, event.uids, event.step)
                _check_repeats(not rows.is_ghost)
                self._embeddings.append(rows)
                return rows.latents
        missing = [uid for uid in state.uids if uid not in self._decoded_at(state.step)]
        if self._journal.is_spent or not self.ledger.affords(Cost(decodes=len(missing))):
            raise BudgetSpent
        media = self._decode_rows(op, state, preview)
        if len(media) < len(state):
            raise BudgetSpent
        with self.ledger.phase("verify"):
            embedded = extractor.features(media)
        rows, blob = self._journal.save(replace(state, latents=embedded, carry={}, shared={}), op, 0)
        self._embeddings.append(rows)  # what is stored of it is needed again by a session after a kill
        self._record(
            Embedded(
                op=op, uids=state.uids, step=state.step, extractor=extractor.name, preview=preview, blob=blob
            )
        )
        return embedded

    @property
    def op(self) -> int:
        """The number of the next operation."""
        return self._op

    def note(self, **values: float) -> None:
        """Reports numbers about the search itself (effective sample size, generation) to the trace."""
        op, past = self._begin("note")
        if not past:
            self._record(Note(op=op, values={k: float(v) for k, v in values.items()}))

    # Machinery

    def _begin(self, kind: str) -> tuple[int, list[Event]]:
        """The number of the operation that starts, and what a former session recorded for it.

        Raises:
            StorageError: If that was another kind of operation.
        """
        op = self._op
        self._op += 1
        past: list[Event] = [e for e in self._journal.past(op) if e.kind not in {"checkpoint", "done"}]
        if all(event.kind == "decode" for event in past):
            past = []  # killed between decoding and scoring: both are done again
        if past:
            _check_repeats(past[-1].kind == kind)
            self.ledger.restore(past[-1].spent)
            for event in past:
                if event.kind == "decode":
                    self._decoded_at(event.step).update(dict.fromkeys(event.uids))
            if self._observer is not None:
                self._observer(self, past[-1])
        return op, past

    def _record(self, event: Event) -> None:
        event = event.model_copy(update={"spent": self.ledger.read()})
        self._journal.append(event)
        if self._observer is not None:
            self._observer(self, event)

    def _record_birth(self, event: Event, past: list[Event]) -> None:
        if past:
            _check_repeats(past[-1].model_copy(update={"spent": event.spent}) == event)
        else:
            self._record(event)

    def _new_uids(self, n: int) -> tuple[int, ...]:
        first, self._next_uid = self._next_uid, self._next_uid + n
        return tuple(range(first, first + n))

    def _check_steps(self, state: State, steps: int, *, least: int) -> None:
        most = self.num_steps - state.step
        if not least <= steps <= most:
            raise ConfigError(
                f"A state can be advanced by {least} to {most} more steps but got {steps}; "
                f"it stands at step {state.step} of {self.num_steps}."
            )

    def _recorded_rows(self, past: list[Event], state: State, step: int) -> dict[int, State]:
        """What a former session computed of an operation that takes `state` to `step`, by first row."""
        done = {}
        for event in past:
            if event.kind == "advance" or event.kind == "gradient":
                rows = state.select(range(event.first, min(event.first + len(event.uids), len(state))))
                _check_repeats((event.from_step, event.step, event.uids) == (state.step, step, rows.uids))
                done[event.first] = self._journal.load(event.blob, rows, event.uids, event.step)
        return done

    def _missing_rows(
        self, done: dict[int, State], state: State, each: Cost, *, shared: Cost | None = None
    ) -> Iterator[tuple[int, int]]:
        """Row ranges, a micro-batch each, that are left to compute at a cost of `each` row.

        Args:
            done: Rows that are computed already, by the first of each range.
            state: All rows.
            each: What a row costs that shares nothing.
            shared: The part of that which equal rows of a micro-batch pay once.

        Raises:
            BudgetSpent: If not all can be paid for.
        """
        missing = self._gaps({first: len(part) for first, part in done.items()}, len(state))
        cost = each * sum(b - a for a, b in missing)
        if shared is not None and not state.is_ghost:
            parts = [part for a, b in missing for part in self._batches(b - a, offset=a)]
            cost += shared * sum(distinct(state.latents[a:b]) - (b - a) for a, b in parts)
        if missing and (self._journal.is_spent or not self.ledger.affords(cost)):
            raise BudgetSpent
        if missing and state.is_ghost:
            _check_repeats(False)
        for a, b in missing:
            yield from self._batches(b - a, offset=a)

    def _require(self, capability: str, what: str) -> None:
        if capability not in self.capabilities:
            raise CapabilityError(
                f"{what[0].upper()}{what[1:]} needs a sampler with {capability!r} but {self._sampler.name!r} "
                f"has {sorted(self.capabilities)}; "
                + (
                    "build it with stochastic=True."
                    if capability in {"stochastic", "step_noise"}
                    else "use another algorithm or model."
                )
            )

    def _batches(self, n: int, offset: int = 0) -> Iterator[tuple[int, int]]:
        """Row ranges of at most `max_batch`, which may shrink while they are being worked on."""
        a, end = offset, offset + n
        while a < end:
            b = min(end, a + (self.max_batch or n))
            yield a, b
            a = b

    @staticmethod
    def _gaps(done: dict[int, int], n: int) -> list[tuple[int, int]]:
        """Row ranges of ``range(n)`` that ``{first: length}`` leaves out."""
        gaps, at = [], 0
        for first in sorted(done):
            if first > at:
                gaps.append((at, first))
            at = first + done[first]
        if at < n:
            gaps.append((at, n))
        return gaps

    def _advance_rows(self, rows: State, steps: int) -> State:
        return self._halving(rows, lambda part: self._sampler.advance(part, steps).to("cpu"), State.cat)

    def _gradient_rows(
        self, sampler: DifferentiableSampler, verifier: DifferentiableVerifier, rows: State, steps: int
    ) -> tuple[State, tuple[str | None, ...]]:
        """The rows `steps` steps later with their gradients, and why some have none."""
        why: dict[int, str | None] = {}

        def differentiate(part: State) -> State:
            def reward(pixels: Tensor) -> Tensor:
                with self.ledger.phase("verify"):
                    rewards, reasons = safe_rewards(verifier, pixels, [self._prompt] * len(part))
                why.update(zip(part.uids, reasons))
                return rewards

            return with_gradient(sampler, part, steps, reward)

        ahead = self._halving(rows, differentiate, State.cat)
        return ahead, tuple(why[uid] for uid in rows.uids)

    def _halving(self, rows: State, work: Callable[[State], Any], join: Callable[[list[Any]], Any]) -> Any:
        """`work` on the rows; on out-of-memory on half as many at a time, which stays the micro-batch."""
        done, at, size = [], 0, len(rows)
        while at < len(rows):
            spent, taken = self.ledger.spent, min(size, len(rows) - at)
            try:
                done.append(work(rows if taken == len(rows) else rows.select(range(at, at + taken))))
                at += taken
                continue
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if taken == 1:
                    raise PipelineError(
                        f"One sample at a time must fit into memory but {self._sampler.name!r} says: "
                        f"{error}; use a smaller picture, half precision or offloading."
                    ) from error
            # after the handler, so that the traceback no longer holds the tensors that filled the memory
            self.ledger.spent = spent  # what failed gave nothing and is charged again, piece by piece
            size = (taken + 1) // 2
            self.max_batch = min(size, self.max_batch or size)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return done[0] if len(done) == 1 else join(done)

    def _score_rows(self, op: int, rows: State, preview: bool) -> dict[int, Score]:
        media = self._decode_rows(op, rows, preview, calls=self.score_cost.verifier_calls)
        verifier, prompts = self._verifier, [self._prompt] * len(media)
        anchor = None if preview or self.best is None else Anchor(self.best.load, self.best.score)
        trust: float | None = None
        with self.ledger.phase("verify"):
            scores = safe_scores(verifier, media, prompts, charge=self.ledger.charge_calls, anchor=anchor)
            if isinstance(verifier, PreviewVerifier) and preview:
                pairs = preview_pairs(self._journal.events)
                verifier.fit(pairs)
                scores = [verifier.expected(score, rows.step) for score in scores]
                trust = spearman(pairs.get(rows.step, []))
        files = []
        for uid, sample, score in zip(rows.uids, media, scores):
            name = None if preview else self._store.save(uid, sample, score, settled=not self._pools)
            files.append(name or "")
            path = self._store.path(name) if name else None
            self._keep(Candidate(uid, score, rows.step, None if name else sample, path))
        self._settle()
        self._record(
            Scored(
                op=op,
                uids=rows.uids[: len(scores)],
                step=rows.step,
                preview=preview,
                values=tuple(score.value for score in scores),
                parts=tuple(score.parts for score in scores),
                reasons=tuple(score.reason for score in scores),
                files=tuple(files),
                trust=trust,
            )
        )
        return dict(zip(rows.uids, scores))

    def _decode_rows(self, op: int, rows: State, preview: bool, *, calls: int = 0) -> list[Media]:
        """The samples or previews of the rows; only of the first ones when time runs out.

        Args:
            op: Number of the operation.
            rows: What to decode, unless it was at this step before.
            preview: Whether it is unfinished.
            calls: Verifier calls that each sample is going to take.
        """
        decode = self._sampler.preview if preview else self._sampler.decode
        done = self._decoded_at(rows.step)
        todo = [i for i, uid in enumerate(rows.uids) if done.get(uid) is None]
        for a, b in self._batches(len(todo)):
            part = rows.select(todo[a:b])
            cost = Cost(decodes=sum(uid not in done for uid in part.uids))
            ahead = Cost(verifier_calls=calls * (len(rows) - len(todo) + b))
            if a and not self.ledger.affords(cost + ahead):
                break  # time runs out: go on with what is decoded
            self.ledger.charge(cost)
            decoded = self._halving(part, decode, lambda lists: [m for group in lists for m in group])
            done.update(zip(part.uids, decoded))
            self._record(Decode(op=op, uids=part.uids, first=a, step=rows.step, preview=preview))
        media: list[Media] = []
        for uid in rows.uids:
            sample = done.get(uid)
            if sample is None:
                break
            media.append(sample)
        return media

    def _decoded_at(self, step: int) -> dict[int, Media | None]:
        """What was decoded at a step, by uid; forgotten at once where no features are in use."""
        if not self._embeds:
            return {}
        if self._decoded_step != step:
            self._decoded, self._decoded_step = {}, step
        return self._decoded

    def _recorded_scores(self, past: list[Event]) -> dict[int, Score]:
        verdicts: dict[int, Score] = {}
        for event in past:
            if event.kind != "score":
                continue
            for uid, value, parts, reason, name in zip(
                event.uids, event.values, event.parts, event.reasons, event.files
            ):
                verdicts[uid] = Score(value=value, parts=parts, reason=reason)
                path = self._store.path(name) if name else None
                self._keep(Candidate(uid, verdicts[uid], event.step, path=path))
        self._settle()
        return verdicts

    @property
    def _pools(self) -> bool:
        return isinstance(self._verifier, PooledVerifier)

    def _settle(self) -> None:
        """Brings the values of all finished samples up to date, where they depend on each other."""
        if not isinstance(self._verifier, PooledVerifier):
            return
        pool = list(self.candidates.values())
        for candidate, value in zip(pool, self._verifier.pool([c.score for c in pool]), strict=True):
            candidate.score = candidate.score.model_copy(update={"value": value})
        scored = [c for c in pool if not math.isnan(c.score.value)]
        self.best = max(scored, key=lambda c: c.score.value, default=None)

    def _keep(self, candidate: Candidate) -> None:
        finished = candidate.step == self.num_steps
        if finished:
            self.candidates[candidate.uid] = candidate
        current = self.best if finished else self.best_preview
        value = candidate.score.value
        if not math.isnan(value) and (current is None or value > current.score.value):
            if finished:
                self.best = candidate
            else:
                self.best_preview = candidate

    def done(self, *, budget_spent: bool = False) -> None:
        """Records the end of the search, once."""
        if not any(event.kind == "done" for event in self._journal.events):
            best = self.best or self.best_preview
            uid = None if best is None else best.uid
            self._record(Done(op=self._op, best=uid, budget_spent=budget_spent))

    def interrupted(self, reason: str) -> None:
        """Records that the search stopped before its end, and keeps what it needs to go on."""
        self._journal.frozen = True
        self._journal.append(Checkpoint(op=self._op, reason=reason, spent=self.ledger.read()))


def apply_mutation(mutation: Mutation, children: State) -> State:
    """Applies `mutation` with noise keyed by each child's uid; a ghost stays one."""
    if children.is_ghost:
        return replace(children, step=children.step - mutation.back)
    like = noise_shape(mutation, children)
    return mutation.apply(children, row_noise(children.seed, "mutate", children.uids, children.step, like))


_DIVERGED = (
    "A resumed search must repeat itself but this one asks for something else than its trace records; use "
    "the same configuration and version, let algorithms draw from ctx.rng() alone and decide by ctx alone, "
    "or start afresh."
)


def _check_repeats(repeats: bool) -> None:
    if not repeats:
        raise StorageError(_DIVERGED)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error).lower()
