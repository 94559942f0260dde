"""The operations that a search algorithm is written in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tts_vision.candidates import Candidate, MediaStore
from tts_vision.condition import Asset, Condition, conditions_of
from tts_vision.engine import Engine, check_steps
from tts_vision.errors import ConfigError, SearchWarning, TargetReached
from tts_vision.features import load_extractor
from tts_vision.gradients import compute_gradient
from tts_vision.journal import Journal
from tts_vision.judging import Judging, Target
from tts_vision.ledger import Budget, Ledger, Remaining
from tts_vision.media import open_image
from tts_vision.moves import Move, Recondition, Renoise, Select, carried
from tts_vision.recovery import Recovery
from tts_vision.resampling import Floats
from tts_vision.resolve import loaded_verifier
from tts_vision.rng import choice_generator
from tts_vision.sampler import Sampler
from tts_vision.steering import STEERING, Decisions, Steered, Steering
from tts_vision.trace import Event
from tts_vision.types import Cost, Decoded, FeatureExtractor, Prompt, Score, State
from tts_vision.verifier import Question, Verifier, as_verifier

CHUNK = 16
"""Independent samples that are made at a time where nothing says otherwise."""


class SearchContext:
    """The operations that a search algorithm is written in.

    Operations are of three kinds: births make particles (`init`, `select`, `mutate`, `renoise`,
    `recondition`), computed rows move them on (`advance`, `finish`, `gradient`), and answers are facts about
    them or from elsewhere (`score`, `judge`, `features`, `ask`). Each is charged and recorded; a resumed
    search runs again and gets its recorded results until it reaches an operation that was never done.

    Args:
        sampler: The generator.
        verifier: A `Verifier`, or anything that `as_verifier` takes.
        prompt: The prompt that the user asked for.
        seed: Root seed.
        ledger: The budget; without limits by default.
        journal: Where operations are recorded; in memory by default.
        store: Where finished samples go; in memory by default.
        max_batch: Rows computed at once; by default all, and fewer when memory runs out.
        chunk: Independent samples to make at a time; by default `max_batch`, or `CHUNK`.
        observer: Called with the context and each event.
        target: Score, or ``satisfied``, at which the search ends.
        open_sampler: Finds the generators that `using` names.
        steering: A person's say in the search.
    """

    def __init__(
        self,
        sampler: Sampler,
        verifier: Any,
        prompt: Prompt,
        *,
        seed: int,
        ledger: Ledger | None = None,
        journal: Journal | None = None,
        store: MediaStore | None = None,
        max_batch: int | None = None,
        chunk: int | None = None,
        observer: Callable[[SearchContext, Event], None] | None = None,
        target: Target = None,
        open_sampler: Callable[[str], Sampler] | None = None,
        steering: Steering | None = None,
    ) -> None:
        self._engine = Engine(seed, ledger or Ledger(), journal or Journal(), max_batch)
        self._judging = Judging(self._engine, as_verifier(verifier), prompt, store or MediaStore(), target)
        self._condition = sampler.condition_of(prompt)
        self._chunk = chunk or max_batch or CHUNK
        self.open_sampler = open_sampler
        self._others: dict[str, Sampler] = {}
        self._name = ""
        self._sampler = sampler
        self._steered = Steered(steering)
        self._engine.recovery = Recovery(self)
        sampler.bind(self.ledger)
        if observer is not None:
            self._engine.observe = lambda event: observer(self, event)

    # Facts

    @property
    def num_steps(self) -> int:
        """Decision steps of a whole trajectory."""
        return self._sampler.num_steps

    @property
    def sampler(self) -> Sampler:
        """The generator."""
        return self._sampler

    @property
    def seed(self) -> int:
        """Root seed."""
        return self._engine.seed

    @property
    def capabilities(self) -> frozenset[str]:
        """The abilities of the sampler."""
        return self._sampler.capabilities

    @property
    def prompt(self) -> Prompt:
        """The prompt that the user asked for."""
        return self._judging.prompt

    @property
    def verifier(self) -> Verifier:
        """The verifier that guides the search."""
        return self._judging.verifier

    @property
    def ledger(self) -> Ledger:
        """The budget and what is spent."""
        return self._engine.ledger

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return self._engine.journal.events

    @property
    def candidates(self) -> dict[int, Candidate]:
        """Finished and scored samples by uid, in the order they were scored."""
        return self._judging.candidates.finished

    @property
    def best(self) -> Candidate | None:
        """The finished sample with the highest score so far."""
        return self._judging.candidates.best

    @property
    def best_preview(self) -> Candidate | None:
        """The unfinished sample with the highest score so far."""
        return self._judging.candidates.best_preview

    @property
    def decoded(self) -> Mapping[int, Decoded]:
        """The samples or previews that were decoded just now, by uid: for observers of ``decode``."""
        return self._judging.decoded

    @property
    def satisfied(self) -> bool | None:
        """Whether a finished sample reached the target; None without a target."""
        return self._judging.satisfied

    @property
    def max_batch(self) -> int | None:
        """Rows computed at once; shrinks when memory runs out."""
        return self._engine.max_batch

    @property
    def op(self) -> int:
        """The number of the next operation."""
        return self._engine.op

    @property
    def chunk(self) -> int:
        """Independent samples to make at a time; no more than there are if a target or the time may end it.

        Unlike `max_batch` it does not depend on memory, so that a resumed search repeats itself.
        """
        return min(self._chunk, max(1, len(self.candidates))) if self._may_end_early else self._chunk

    @property
    def _may_end_early(self) -> bool:
        return self._judging.target is not None or self.ledger.budget.seconds is not None

    @property
    def can_fork(self) -> bool:
        """Whether copies of a particle would diverge."""
        return self._sampler.last_noisy_step >= 0

    def can_fork_at(self, step: int) -> bool:
        """Whether copies made at `step` would diverge."""
        return step <= self._sampler.last_noisy_step

    def mutation(self, step: int, strength: float) -> Move | None:
        """The move that redoes part of the randomness behind a state at `step`; see `Sampler.move`."""
        return self._sampler.move(step, strength)

    def cost(
        self, steps: int | None = None, *, scored: bool = True, step: int = 0, gradient: bool = False
    ) -> Cost:
        """The cost of one particle from `step` on for `steps` steps (by default to the end), and its score.

        With `gradient`, the cost of `gradient` for them.
        """
        steps = self.num_steps - step if steps is None else steps
        if gradient:
            cost = self._sampler.gradient_cost(self._condition, step, steps) + self.score_cost
        else:
            cost = self._sampler.cost(self._condition, step, steps)
        return cost + self.score_cost if scored else cost

    @property
    def score_cost(self) -> Cost:
        """The cost of decoding and scoring one sample."""
        return self._judging.score_cost

    def judge_cost(self, step: int, question: str) -> Cost:
        """The cost of decoding one particle at `step` and of the answer to a question about it."""
        calls = self.verifier.calls_to_answer(question, 1)
        cost = Cost(decodes=1, verifier_calls=sum(calls.values()))
        return cost + (self._sampler.preview_cost(self._condition, step) if step < self.num_steps else Cost())

    def remaining(self) -> Remaining:
        """The rest of the budget; recorded where time is limited, so that a resumed search decides alike."""
        left = self.ledger.remaining()
        if left.seconds is None:
            return left
        return Remaining(**self.ask("remaining", lambda: asdict(self.ledger.remaining())))

    def affordable(self, each: Cost) -> int | None:
        """How many times `each` can still be spent; None without a limit."""
        return self.remaining().times(each)

    def rng(self) -> np.random.Generator:
        """A generator for the algorithm's own next choice, fixed by the seed and the operation number."""
        return choice_generator(self._engine.seed, self.op)

    def using(self, generator: Sampler | str) -> SearchContext:
        """The same search over another generator: an editor, a corrector, a cheaper drafter.

        It shares budget, record, uids and candidates; states of one generator are not for another.

        Args:
            generator: A sampler, or the name of a model as ``--model`` takes it.

        Raises:
            ConfigError: If two samplers have one name, or none can be found by name here.
        """
        name = generator if isinstance(generator, str) else generator.name
        if isinstance(generator, Sampler):
            if self._others.setdefault(name, generator) is not generator:
                raise ConfigError(f"Samplers of one search need names of their own but two are {name!r}.")
        elif name not in self._others:
            if self.open_sampler is None:
                raise ConfigError(f"Here a generator must be a Sampler but got {name!r}; load it before.")
            self._others[name] = self.open_sampler(name)
        other = copy.copy(self)
        other._sampler, other._name = self._others[name], name
        other._condition = other._sampler.condition_of(self.prompt)
        other._sampler.bind(self.ledger)
        return other

    # Births

    def init(self, n: int, condition: Condition | str | Sequence[Condition | str] | None = None) -> State:
        """`n` fresh particles at step 0.

        Args:
            n: How many.
            condition: What they are generated for, all of them or each; by default the user's prompt.
        """
        if n < 1:
            raise ConfigError(f"A population must have at least 1 particle but got {n}; raise it.")
        conditions = conditions_of(condition, n, self._condition)
        return self._engine.init(self._sampler, self._name, conditions, default=self._condition)

    def select(self, state: State, index: Sequence[int]) -> State:
        """Rows at `index`: prune, reorder, resample.

        The first copy of a row keeps its identity; further copies are forks with a noise stream of
        their own.

        Raises:
            ForkError: If a row is duplicated and nothing later could make the copies differ.
        """
        if len(set(index)) < len(index):
            self._sampler.requires_fork(state.step)
        return self._birth(state, Select(), index, keeps_first=True)

    def fork(self, state: State) -> State:
        """A fork of each row, under a new identity.

        Raises:
            ForkError: If nothing later could make it differ.
        """
        self._sampler.requires_fork(state.step)
        return self._birth(state, Select(), None)

    def number_from(self, uid: int) -> None:
        """Numbers new particles from `uid` on, or from the next free number if that is higher.

        Noise is drawn by number, so a particle of another search of the same seed is made under its own.
        """
        self._engine.number_from(uid)

    def mutate(self, state: State, move: Move, parents: Sequence[int] | None = None) -> State:
        """Children of the rows `parents` (by default each row once), made by `move`.

        Raises:
            CapabilityError: If the sampler cannot be moved that way.
        """
        return self._birth(state, move, parents)

    def renoise(self, state: State, to_step: int, parents: Sequence[int] | None = None) -> State:
        """Children of the rows `parents`, sent back to the earlier `to_step` with fresh noise.

        Raises:
            CapabilityError: If the sampler cannot go back.
        """
        return self._birth(state, Renoise(to_step), parents)

    def recondition(
        self,
        state: State,
        condition: Condition | str | Sequence[Condition | str],
        parents: Sequence[int] | None = None,
    ) -> State:
        """Children of the rows `parents`, generated for other conditions from here on.

        Args:
            state: The parents.
            condition: For all children, or one for each. A string is a prompt; everything else is as without
                a condition.
            parents: The parent of each child; by default each row once.

        Raises:
            ConfigError: If the generator cannot take a condition.
            CapabilityError: If it cannot at this step.
        """
        index = range(len(state)) if parents is None else parents
        conditions = conditions_of(condition, len(index), self._condition)
        return self._birth(state, Recondition(), index, conditions=conditions)

    # Computed rows

    def advance(self, state: State, steps: int = 1) -> State:
        """The state `steps` steps later.

        Raises:
            BudgetSpent: If the steps cannot be paid for; ends the search.
        """
        check_steps(self._sampler, state, steps, least=0)
        engine, sampler = self._engine, self._sampler
        op, past = engine.begin("advance")
        if not steps:
            return state

        def work(rows: State) -> tuple[State, dict[str, Any]]:
            return State.cat(engine.halving(rows, lambda part: sampler.advance(part, steps).to("cpu"))), {}

        def price(rows: State) -> Cost:
            return sampler.price(rows, steps)

        return engine.compute(op, past, "advance", state, state.step + steps, price, work)[0]

    def finish(self, state: State) -> State:
        """The state at the end of its trajectory."""
        return self.advance(state, self.num_steps - state.step)

    def gradient(self, state: State, steps: int = 1) -> tuple[State, Tensor]:
        """The state `steps` steps later, carrying the gradient of its reward; and the rewards.

        The reward is that of the final sample, or of the x0 estimate if the trajectory is unfinished: over
        one step, of the preview of `state` itself. The gradient, by the latents of `state`, is carried for
        moves to use; see `tts_vision.gradients`. Going back through a step is charged like going forth, and a
        call of the verifier for each row.

        Returns:
            The state and ``(B,)`` float64 rewards; NaN, with a gradient of 0, where there is none.

        Raises:
            BudgetSpent: If it cannot be paid for; ends the search.
            CapabilityError: If the sampler or the verifier gives no gradients.
        """
        check_steps(self._sampler, state, steps, least=1)
        return compute_gradient(self._engine, self._judging, self._sampler, state, steps)

    # Answers

    def score(
        self,
        state: State,
        prompt: str | Prompt | Sequence[Prompt] | None = None,
        *,
        by: Verifier | None = None,
    ) -> Tensor:
        """Scores of the finished samples, or of previews of unfinished ones.

        A finished particle that was scored before is not scored again.

        Args:
            state: Particles.
            prompt: Judges them by another prompt than that of the user, such as that of a stage, all of them
                or each. Such scores guide the search; only scores by the user's prompt make candidates.
            by: Another verifier than that of the search, from `another_verifier`. Its scores make no
                candidates either.

        Returns:
            ``(B,)`` float64; NaN where a sample could not be scored. Where a person steers the search,
            pinned particles rank first and banned ones last.

        Raises:
            BudgetSpent: If not all can be paid for; those that can be are scored first.
            CapabilityError: If the state is unfinished and the sampler has no preview.
        """
        if state.step < self.num_steps:
            self._sampler.requires("preview", f"scoring at step {state.step} of {self.num_steps}")
        prompts = None
        if prompt is not None or by is not None:
            prompt = self.prompt if prompt is None else prompt
            given = [prompt] * len(state) if isinstance(prompt, (str, Prompt)) else list(prompt)
            prompts = [Prompt(p) if isinstance(p, str) else p for p in given]
        scores = self._judging.score(self._sampler, state, prompts, by)
        self._steer(state)
        return self._steered.decisions.applied(scores, state.uids)

    def another_verifier(self, text: str) -> Verifier:
        """The verifier of a name, with parameters as ``name:key=value``, loaded; for `score`.

        Raises:
            ConfigError: If there is none, or it does not score the samples of the sampler.
            VerifierError: If it cannot be loaded.
        """
        return loaded_verifier(text, self._sampler)

    def judge(self, state: State, question: str, *, expected: bool = True) -> list[Score]:
        """The verifier's answers to one of its questions, about finished samples or previews.

        They guide the search but make no candidates. A sample is decoded once at each step, whether it is
        scored or judged, by one question or by several.

        Args:
            state: Particles.
            question: One of `Verifier.questions`, such as ``clarity``.
            expected: The verdict for the rehearsal that finds the size of a search, which asks nobody.

        Returns:
            A score for each particle, with the verdict as `Score.satisfied`; None there, and NaN as value,
            where the verifier failed.

        Raises:
            BudgetSpent: If not all can be paid for.
            CapabilityError: If the verifier does not answer that question, or the state is unfinished and the
                sampler has no preview.
        """
        if state.step < self.num_steps:
            self._sampler.requires("preview", f"judging at step {state.step} of {self.num_steps}")
        return self._judging.judge(self._sampler, state, Question(self.verifier, question))

    def current_scores(self, state: State) -> Tensor:
        """The scores of finished particles by now; costs nothing.

        Where a verifier compares samples with each other (`Verifier.settles`), they change as samples are
        added; an algorithm that compares new samples with old ones asks for both anew.

        Returns:
            ``(B,)`` float64; NaN where a sample could not be scored.
        """
        return self._steered.decisions.applied(self._judging.current_scores(state), state.uids)

    def extractor(self, name: str) -> FeatureExtractor:
        """The feature extractor of a name, with parameters as ``name:key=value``; for `features`.

        Raises:
            ConfigError: If there is none, or it does not embed the samples of the sampler.
            VerifierError: If it cannot be loaded.
        """
        extractor = load_extractor(name)
        if self._sampler.modality not in extractor.accepts:
            raise ConfigError(
                f"Features {extractor.name!r} are of {' and '.join(sorted(extractor.accepts))} but "
                f"{self._sampler.name!r} makes {self._sampler.modality}; choose others."
            )
        self._judging.keeps_decoded = True
        return extractor

    def features(self, state: State, extractor: FeatureExtractor) -> Tensor:
        """Embeddings of the finished samples, or of previews of unfinished ones.

        A sample is decoded once at each step, whether it is embedded, scored or both.

        Args:
            state: Particles.
            extractor: From `extractor`.

        Returns:
            ``(B, D)`` float32.

        Raises:
            BudgetSpent: If decoding cannot be paid for.
            CapabilityError: If the state is unfinished and the sampler has no preview.
            VerifierError: If a sample cannot be embedded.
        """
        if state.step < self.num_steps:
            self._sampler.requires("preview", f"features at step {state.step} of {self.num_steps}")
        return self._judging.features(self._sampler, state, extractor)

    def ask(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        cost: Cost | Mapping[str, int] | None = None,
        expected: Any = None,
        about: State | None = None,
    ) -> Any:
        """The answer of `function`, asked once: recorded, and repeated from the record on resume.

        For whatever is not computed from the seed: a language model, a person, a detector, the clock.

        Args:
            name: How the record calls it.
            function: Gives the answer, of values that JSON can hold.
            *arguments: Of the function.
            cost: Calls by name, or a `Cost`; charged before it is asked.
            expected: An answer for the rehearsal that finds the size of a search, which asks nobody.
            about: The particles that it is about, for the record.

        Raises:
            ConfigError: If the name is taken by another operation, or JSON cannot hold the answer.
            BudgetSpent: If it cannot be paid for.

        Example:
            >>> better = ctx.ask("critic", critic, image, cost={"critic": 1}, expected="a red circle")
        """
        uids = () if about is None else about.uids
        return self._engine.ask(name, lambda: function(*arguments), cost=cost, uids=uids)

    def image(self, source: str) -> Asset:
        """An image that is read once: it is kept with the search, and taken from there on resume.

        Args:
            source: A file, or an image as `tts_vision.media.data_url` writes it.

        Raises:
            ConfigError: If it is no still image, or a configuration that is not trusted names a file.
        """

        def read() -> str:
            asset = Asset.of(open_image(source))
            self._engine.journal.keep(asset)
            return asset.name

        return self._engine.journal.asset(self._engine.ask("image", read))

    def measure(self, state: State, key: str) -> Tensor:
        """The numbers that the rows of a state carry under `key`, ``(B,)`` float64; recorded by `ask`."""

        def numbers() -> list[float]:
            values: list[float] = carried(self._engine.whole(state), key).double().tolist()
            return values

        return torch.tensor(self._engine.ask(f"measure {key}", numbers, uids=state.uids), dtype=torch.float64)

    def note(self, **values: float) -> None:
        """Records numbers about the search itself (effective sample size, generation)."""
        self._engine.ask("note", lambda: {key: float(value) for key, value in values.items()})

    def weigh(self, state: State, log_weights: Floats, log_z: float) -> None:
        """Records the weights by which finished particles follow the law that the algorithm samples.

        Args:
            state: The particles.
            log_weights: ``(B,)``, up to a constant.
            log_z: Estimate of the log of the law's normalising constant, relative to the model's own.
        """
        weights = {"log_weights": [float(value) for value in log_weights], "log_z": float(log_z)}
        self._engine.ask("weights", lambda: weights, uids=state.uids)

    def keep_thumbnails(self) -> None:
        """Keeps thumbnails of all previews and samples from now on, for the tree in the result folder."""
        self._judging.keeps_thumbnails = True

    def warn(self, message: str) -> None:
        """Tells the user something about the search; recorded."""
        self._engine.ask("warning", lambda: message)
        warnings.warn(message, SearchWarning, stacklevel=3)

    # The end

    def conclude(self) -> None:
        """Says that nothing is left to be gained, so that the rest of the budget is saved.

        Without it, the rest of the budget goes to independent samples.
        """
        self._engine.concluded = True

    @property
    def concluded(self) -> bool:
        """Whether the algorithm saves the rest of its budget."""
        return self._engine.concluded

    def finish_pinned(self) -> None:
        """Finishes and scores the pinned particles that the algorithm left behind, each alone.

        The price comes on top of the budget; the user is told.
        """
        pinned = sorted(self._steered.decisions.pinned - self.candidates.keys())
        left = {uid: self._steered.rows[uid] for uid in pinned if uid in self._steered.rows}
        if not left:
            return
        spent, budget = self.ledger.spent, self.ledger.budget
        self.ledger.budget = Budget()
        for context, row in left.values():
            with suppress(TargetReached):
                context.score(context.finish(row))
        self.ledger.budget = budget
        price = self.ledger.spent.compute - spent.compute
        unit = "macs" if spent.macs else "nfe"
        self.warn(
            f"The algorithm left pinned particles {', '.join(map(str, left))} behind; they were finished at "
            f"the end, for {price:g} {unit} on top of the budget."
        )

    def done(self, *, budget_spent: bool = False) -> None:
        """Records the end of the search, once."""
        best = self.best or self.best_preview
        uid = None if best is None else best.uid
        self._engine.done(uid, budget_spent=budget_spent, satisfied=self.satisfied)

    def interrupted(self, reason: str) -> None:
        """Records that the search stopped before its end, and keeps what it needs to go on."""
        self._engine.interrupted(reason)

    def _steer(self, state: State) -> None:
        """Takes up what a person decided since the last scoring, and records it if there is anything new."""
        engine, steered = self._engine, self._steered
        past = engine.journal.past(engine.op)
        is_recorded = bool(past) and past[0].what == STEERING
        live = steered.decisions if steered.steering is None else steered.steering.decisions
        is_new = engine.op > engine.journal.last_op and live != steered.decisions
        if is_recorded or is_new:
            steered.decisions = Decisions.from_json(engine.ask(STEERING, live.as_json))
            self._judging.candidates.ban(steered.decisions.banned)
        if state.step < self.num_steps:
            steered.hold(self, state)

    def _birth(
        self,
        state: State,
        move: Move,
        parents: Sequence[int] | None,
        *,
        keeps_first: bool = False,
        conditions: Sequence[Condition] | None = None,
    ) -> State:
        self._sampler.requires(move.needs, f"move {move.name!r}")
        index = range(len(state)) if parents is None else parents
        return self._engine.birth(
            self._sampler, self._name, state, move, index, keeps_first=keeps_first, conditions=conditions
        )
