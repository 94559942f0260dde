"""Scores and features of particles: decodes them, asks verifiers and extractors, keeps the candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from tts_vision.calibration import History
from tts_vision.candidates import Candidate, Candidates, MediaStore
from tts_vision.condition import Condition, distinct
from tts_vision.engine import Engine, check_repeats
from tts_vision.errors import BudgetSpent, TargetReached, TTSVisionError
from tts_vision.files import STATE
from tts_vision.media import copied, is_constant, storable
from tts_vision.sampler import Sampler
from tts_vision.scoring import safe_scores
from tts_vision.trace import Answer, Computed, Event
from tts_vision.types import (
    Cost,
    Decoded,
    FeatureExtractor,
    Invalid,
    Media,
    Modality,
    Prompt,
    Score,
    State,
    Video,
)
from tts_vision.verifier import Asked, Best, Question, Verifier

Target: TypeAlias = float | Literal["satisfied"] | None
Decode: TypeAlias = Callable[[State], Sequence[Decoded]]


class Judging:
    """The samples of a search, their scores and their features.

    Attributes:
        verifier: The verifier that guides the search.
        prompt: The prompt that the user asked for.
        candidates: All scored samples.
        decoded: The samples that were decoded just now, by uid, while observers are told; else empty.
        keeps_decoded: Whether samples are kept until others are decoded at another step, because features and
            questions are about them too.
        keeps_thumbnails: Whether a thumbnail of each preview and sample is kept for figures.
        target: The score, or ``satisfied``, at which the search ends.
    """

    def __init__(
        self, engine: Engine, verifier: Verifier, prompt: Prompt, store: MediaStore, target: Target = None
    ) -> None:
        self.verifier, self.prompt, self.target = verifier, prompt, target
        self.candidates = Candidates(satisfied_first=target == "satisfied")
        self.decoded: Mapping[int, Decoded] = {}
        self.keeps_decoded = self.keeps_thumbnails = False
        self._engine, self._store = engine, store
        self._history = History()
        if verifier.learns:
            engine.listeners.append(self._history.add)
        engine.listeners.append(self._recall)
        self._embeddings: list[State] = []
        # where samples are kept: those decoded at one step, by uid; None if a former session did
        self._decoded: dict[int, Decoded | None] = {}
        self._decoded_step = 0
        self._facts: dict[tuple[str, Condition], Mapping[str, Any]] = {}

    @property
    def score_cost(self) -> Cost:
        """The cost of decoding and scoring one sample."""
        return self._price(1)

    @property
    def satisfied(self) -> bool | None:
        """Whether a finished sample reached the target; None without a target."""
        if self.target is None:
            return None
        best = self.candidates.best
        if best is None:
            return False
        if self.target == "satisfied":
            return best.score.satisfied is True
        return best.score.value >= self.target

    def score(
        self, sampler: Sampler, state: State, prompts: Sequence[Prompt] | None, by: Verifier | None = None
    ) -> Tensor:
        """Scores of the finished samples, or of previews of unfinished ones; see `SearchContext.score`."""
        if prompts is not None:
            return self._stage_score(sampler, state, prompts, by)
        preview = state.step < sampler.num_steps
        op, past = self._engine.begin("score")
        todo = list(range(len(state)))
        if not preview:
            first_of: dict[int, int] = {}
            for i in todo:
                first_of.setdefault(state.uids[i], i)
            todo = [i for uid, i in first_of.items() if uid not in self.candidates.finished]
        if past:
            scores = self._recorded(past, sampler, state)
            check_repeats(set(scores) <= set(state.uids))
        else:
            paid = todo[: self._affordable(len(todo), _preview_price(sampler, state))]
            scores = self._score_rows(op, sampler, state.select(paid), preview) if paid else {}
        if not preview and self.satisfied:
            raise TargetReached
        if any(state.uids[i] not in scores for i in todo):
            raise BudgetSpent
        if not preview:
            return self.current_scores(state)
        return torch.tensor([scores[uid].value for uid in state.uids], dtype=torch.float64)

    def current_scores(self, state: State) -> Tensor:
        """The scores of finished particles by now, ``(B,)`` float64; they cost nothing."""
        values = [self.candidates.finished[uid].score.value for uid in state.uids]
        return torch.tensor(values, dtype=torch.float64)

    def features(self, sampler: Sampler, state: State, extractor: FeatureExtractor) -> Tensor:
        """Embeddings of samples or previews, ``(B, D)`` float32; see `SearchContext.features`."""
        engine = self._engine
        self.keeps_decoded = True
        op, past = engine.begin("features")
        for event in past:
            if event.kind == "answer":
                asked = (extractor.name, state.uids, state.step)
                check_repeats((event.value, event.uids, event.step) == asked)
                rows = engine.stored(event.blob, state, event.uids, event.step)
                if rows.is_placeholder:
                    rows = self._embedded_again(sampler, state, extractor, event)
                self._embeddings.append(rows)
                return rows.latents
        missing = [uid for uid in state.uids if uid not in self._decoded_at(state.step)]
        engine.check_affordable((Cost(decodes=1) + _preview_price(sampler, state)) * len(missing))
        preview = state.step < sampler.num_steps
        media = self._decode(op, sampler, state, preview)
        if len(media) < len(state):
            raise BudgetSpent
        with engine.ledger.phase("verify"):
            embedded = extractor.features(_to_embed(media, sampler.modality))
        rows, blob = engine.journal.save(replace(state, latents=embedded, carry={}, shared={}), op, 0)
        self._embeddings.append(rows)  # a session after a kill needs the stored tensors again
        engine.record(
            Answer(
                op=op,
                what="features",
                uids=state.uids,
                step=state.step,
                value=extractor.name,
                preview=preview,
                blob=blob,
            )
        )
        return embedded

    def _embedded_again(
        self, sampler: Sampler, state: State, extractor: FeatureExtractor, event: Answer
    ) -> State:
        """Embeddings whose stored tensor is lost, as a state of them."""
        engine = self._engine
        check_repeats(engine.recovery is not None and event.blob is not None)
        assert engine.recovery is not None and event.blob is not None
        with engine.recovery.accounts(state.uids, state.step, [f"{STATE}/{event.blob}"]) as ledger:
            ledger.charge(Cost(decodes=len(state)))
            decode = sampler.preview if event.preview else sampler.decode
            samples = self.decoded_rows(engine.whole(state), decode)
            embedded = extractor.features(_to_embed(samples, sampler.modality))
            rows = replace(state, latents=embedded, carry={}, shared={})
            return engine.journal.save(rows, event.op, 0)[0]

    def _price(self, n: int, verifier: Verifier | None = None) -> Cost:
        """The cost of decoding and scoring `n` samples together."""
        return Cost(decodes=n, verifier_calls=sum((verifier or self.verifier).calls(n).values()))

    def _affordable(self, wanted: int, extra: Cost, verifier: Verifier | None = None) -> int:
        """How many of the `wanted` scores can be paid for; each preview costs `extra` besides decoding."""
        if self._engine.journal.is_spent:
            return 0
        left = self._engine.ledger.remaining()
        if not left.forecast(self.score_cost):
            left = replace(left, seconds=None)  # a limit of time says nothing before anything was measured
        low, high = 0, wanted + 1
        while high - low > 1:
            middle = wanted if high > wanted else (low + high) // 2
            fits = left.affords(self._price(middle, verifier) + extra * middle)
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _score_rows(self, op: int, sampler: Sampler, rows: State, preview: bool) -> dict[int, Score]:
        samples = self._decode(op, sampler, rows, preview, scored_by=self.verifier)
        prompts = [self.prompt] * len(samples)
        scores = self._ask(samples, prompts, rows.step if preview else None, self.verifier)
        files = []
        settled = not self.verifier.settles
        for uid, condition, sample, score in zip(rows.uids, rows.conditions, samples, scores):
            media = sample.media if isinstance(sample, Invalid) else sample
            facts = self.facts_of(sampler, condition)
            name = None
            if media is not None and not preview:
                name = self._store.save(uid, media, score, settled=settled, facts=facts)
            files.append(name or "")
            path = self._store.path(name) if name else None
            kept = None if name else media
            self.candidates.keep(Candidate(uid, score, rows.step, preview, kept, path, facts=facts))
        if not preview:
            self.candidates.settle(self.verifier)
        self._engine.record(
            Answer(
                op=op,
                what="score",
                uids=rows.uids[: len(scores)],
                step=rows.step,
                preview=preview,
                scores=tuple(scores),
                files=tuple(files),
            )
        )
        return dict(zip(rows.uids, scores))

    def _stage_score(
        self, sampler: Sampler, state: State, prompts: Sequence[Prompt], by: Verifier | None
    ) -> Tensor:
        """Scores by other prompts or another verifier than the search's; they make no candidates."""
        texts = [prompt.text for prompt in prompts]
        asked = texts if by is None else {"verifier": by.name, "prompts": texts}
        scores = self._side_scores("stage_score", asked, sampler, state, by or self.verifier, prompts)
        return torch.tensor([score.value for score in scores], dtype=torch.float64)

    def judge(self, sampler: Sampler, state: State, question: Question) -> list[Score]:
        """The verifier's answers to a question about samples or previews; see `SearchContext.judge`."""
        self.keeps_decoded = True
        prompts = [self.prompt] * len(state)
        return self._side_scores("judge", question.question, sampler, state, question, prompts)

    def _side_scores(
        self,
        what: str,
        asked: Any,
        sampler: Sampler,
        state: State,
        verifier: Verifier,
        prompts: Sequence[Prompt],
    ) -> list[Score]:
        """Scores that make no candidates, recorded as the answer `what` to what was `asked`; all or none."""
        op, past = self._engine.begin(what)
        for event in past:
            if event.kind == "answer" and event.what == what:
                check_repeats((event.value, event.uids) == (asked, state.uids))
                return list(event.scores)
        if self._affordable(len(state), _preview_price(sampler, state), verifier) < len(state):
            raise BudgetSpent
        preview = state.step < sampler.num_steps
        media = self._decode(op, sampler, state, preview, scored_by=verifier)
        if len(media) < len(state):
            raise BudgetSpent
        scores = self._ask(media, prompts, step=state.step if preview else None, verifier=verifier)
        self._engine.record(
            Answer(
                op=op,
                what=what,
                uids=state.uids,
                step=state.step,
                value=asked,
                preview=preview,
                scores=tuple(scores),
            )
        )
        return scores

    def _ask(
        self, samples: Sequence[Decoded], prompts: Sequence[Prompt], step: int | None, verifier: Verifier
    ) -> list[Score]:
        """The scores of the samples; the verifier is not asked about invalid ones."""
        valid = {i: sample for i, sample in enumerate(samples) if not isinstance(sample, Invalid)}
        best = self.candidates.best if step is None else None
        asked = Asked(
            charge=self._engine.ledger.charge_calls,
            best=None if best is None else Best(best.load, best.score),
            step=step,
            history=self._history,
            remember=self._engine.part,
        )
        with self._engine.ledger.phase("verify"):
            found = safe_scores(verifier, [*valid.values()], [prompts[i] for i in valid], asked=asked)
        scores = {i: _remarked(score, valid[i]) for i, score in zip(valid, found)}
        return [
            Score.of_invalid(sample.reason) if isinstance(sample, Invalid) else scores[i]
            for i, sample in enumerate(samples)
        ]

    def _decode(
        self,
        op: int,
        sampler: Sampler,
        rows: State,
        preview: bool,
        *,
        scored_by: Verifier | None = None,
    ) -> list[Decoded]:
        """The samples or previews of the rows; only of the first ones when time runs out.

        Args:
            op: Number of the operation.
            sampler: Decodes.
            rows: Particles, of which those that were decoded at this step before are not decoded again.
            preview: Whether they are unfinished.
            scored_by: What they are scored by next, which has to be paid for too; nothing if None.
        """
        engine = self._engine
        decode = sampler.preview if preview else sampler.decode
        done = self._decoded_at(rows.step)
        todo = [i for i, uid in enumerate(rows.uids) if done.get(uid) is None]
        rows = engine.whole(rows) if todo else rows
        for a, b in engine.batches(len(todo)):
            part = rows.select(todo[a:b])
            cost = Cost(decodes=sum(uid not in done for uid in part.uids))
            scored = len(rows) - len(todo) + b
            ahead = 0 if scored_by is None else self._price(scored, scored_by).verifier_calls
            if a and not engine.ledger.affords(cost + Cost(verifier_calls=ahead)):
                break  # time runs out: go on with the decoded ones
            engine.ledger.charge(cost)
            self.decoded = dict(zip(part.uids, self.decoded_rows(part, decode)))
            done.update(self.decoded)
            for uid, made in self.decoded.items() if self.keeps_thumbnails else ():
                if not isinstance(made, Invalid):
                    self._store.show(uid, rows.step, made)
            engine.record(
                Computed(op=op, what="decode", uids=part.uids, first=a, step=rows.step, preview=preview)
            )
            self.decoded = {}
        samples: list[Decoded] = []
        for uid in rows.uids:
            sample = done.get(uid)
            if sample is None:
                break
            samples.append(sample)
        return samples

    def decoded_rows(self, rows: State, decode: Decode) -> list[Decoded]:
        """The decoded rows; if that fails, each is decoded alone, and those that fail again are invalid."""
        try:
            decoded = [sample for group in self._engine.halving(rows, decode) for sample in group]
            return [sample if isinstance(sample, Invalid) else storable(sample) for sample in decoded]
        except (TTSVisionError, BudgetSpent):
            raise
        except Exception as error:
            if len(rows) == 1:
                return [Invalid(f"decoding raised {type(error).__name__}: {error}")]
        return [sample for i in range(len(rows)) for sample in self.decoded_rows(rows.select([i]), decode)]

    def facts_of(self, sampler: Sampler, condition: Condition) -> Mapping[str, Any]:
        """How a sampler generates samples of a condition."""
        key = sampler.name, condition
        if key not in self._facts:
            plain = {"sampler": sampler.name, "steps": sampler.num_steps}
            self._facts[key] = {**plain, **sampler.facts(condition)}
        return self._facts[key]

    def _decoded_at(self, step: int) -> dict[int, Decoded | None]:
        """The samples decoded at a step, by uid; forgotten at once where one operation alone needs them."""
        if not self.keeps_decoded:
            return {}
        if self._decoded_step != step:
            self._decoded, self._decoded_step = {}, step
        return self._decoded

    def _recall(self, event: Event) -> None:
        """Takes note that a former session decoded some rows, so that they are not charged again."""
        if event.kind == "computed" and event.what == "decode":
            decoded = self._decoded_at(event.step)
            for uid in event.uids:
                decoded.setdefault(uid, None)

    def _recorded(self, past: Sequence[Event], sampler: Sampler, state: State) -> dict[int, Score]:
        scores: dict[int, Score] = {}
        conditions = dict(zip(state.uids, state.conditions))
        for event in past:
            if event.kind != "answer":
                continue
            for uid, score, name in zip(event.uids, event.scores, event.files):
                scores[uid] = score
                path = self._store.path(name) if name else None
                facts = self.facts_of(sampler, conditions[uid]) if uid in conditions else {}
                candidate = Candidate(uid, score, event.step, event.preview, path=path, facts=facts)
                self.candidates.keep(candidate)
        self.candidates.settle(self.verifier)
        return scores


def _remarked(score: Score, media: Media) -> Score:
    """The score, with a remark where all pixels of the sample are equal."""
    if not is_constant(media):
        return score
    remark = f"constant {'clip' if isinstance(media, Video) else 'image'}"
    return score.model_copy(update={"reason": f"{score.reason}; {remark}" if score.reason else remark})


def _preview_price(sampler: Sampler, state: State) -> Cost:
    """The cost of a preview of one row besides decoding, by the dearest condition; none of a finished one."""
    if state.step >= sampler.num_steps:
        return Cost()
    prices = [sampler.preview_cost(condition, state.step) for condition in distinct(state.conditions)]
    return max(prices, key=lambda price: price.compute)


def _to_embed(samples: Sequence[Decoded], modality: Modality) -> list[Media]:
    """Copies of the samples, for an extractor; black in the place of an invalid one without pixels."""
    media = [sample.media if isinstance(sample, Invalid) else sample for sample in samples]
    like = next((sample for sample in media if sample is not None), None)
    if isinstance(like, Image.Image):
        black: Media = Image.new(like.mode, like.size)
    elif isinstance(like, Video):
        black = Video(torch.zeros_like(like.frames), like.fps)
    elif modality == "image":
        black = Image.new("RGB", (64, 64))
    else:
        black = Video(torch.zeros(8, 64, 64, 3, dtype=torch.uint8))
    return [copied(black if sample is None else sample) for sample in media]
