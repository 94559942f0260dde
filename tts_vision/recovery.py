"""Lost files: particles and samples are made again from the trace, and the user is told the price.

Resume needs the tensors of live states. Where a file of them is missing or damaged, its rows are computed
again from the nearest rows that are still stored, or from their seeds, in the batches of the trace; and
likewise samples that were scored. The search goes on as if nothing had been lost: the price comes on top of
the budget.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tts_vision.candidates import MediaStore
from tts_vision.condition import Condition
from tts_vision.errors import SearchWarning, StorageError, TTSVisionError
from tts_vision.files import STATE, inside, is_file
from tts_vision.gradients import safe_rewards, with_gradient
from tts_vision.ledger import Ledger, Spent
from tts_vision.moves import from_description
from tts_vision.sampler import Sampler
from tts_vision.trace import Birth, Computed, Event, Family, Recovered, answers
from tts_vision.types import Cost, Invalid, State

if TYPE_CHECKING:
    from tts_vision.context import SearchContext

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class Recovery:
    """Makes placeholders whole whose tensors are needed.

    Args:
        context: The search.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context = context

    def __call__(self, state: State) -> State:
        """The state with its tensors.

        Raises:
            StorageError: If they cannot be computed again.
        """
        lost: list[str] = []
        with self.accounts(state.uids, state.step, lost) as ledger:
            rows = _Replay(self._context, ledger, lost).rows(state.uids, state.step)
        return replace(rows, carry={**rows.carry, **state.carry})

    def samples(self, root: Path, store: MediaStore) -> None:
        """Makes stored samples again whose files are missing or damaged.

        Args:
            root: The folder of the search.
            store: Writes them.

        Raises:
            StorageError: If one cannot be made again.
        """
        journal = self._context._engine.journal
        journal.frozen = True  # what is read here is needed by the search as well
        self._samples(root, store)
        journal.frozen = False

    def _samples(self, root: Path, store: MediaStore) -> None:
        judging, settled = self._context._judging, not self._context.verifier.settles
        for event in [*answers(self._context.events, "score")]:
            lost = {
                uid: (score, name)
                for uid, score, name in zip(event.uids, event.scores, event.files)
                if name and not _is_whole(inside(root, name))
            }
            if not lost:
                continue
            with self.accounts((*lost,), event.step, [name for _, name in lost.values()]) as ledger:
                replay = _Replay(self._context, ledger, [])
                rows, sampler = replay.rows([*lost], event.step), replay.sampler(event.uids[0])
                ledger.charge(Cost(decodes=len(rows)))
                decoded = judging.decoded_rows(rows, sampler.decode)
                for uid, condition, sample in zip(rows.uids, rows.conditions, decoded):
                    media = sample.media if isinstance(sample, Invalid) else sample
                    if media is None:
                        raise StorageError(f"decoding particle {uid} gave no sample.")
                    facts = judging.facts_of(sampler, condition)
                    store.save(uid, media, lost[uid][0], settled=settled, facts=facts)

    @contextmanager
    def accounts(self, uids: tuple[int, ...], step: int, lost: list[str]) -> Iterator[Ledger]:
        """A ledger for the price of what is made again, which is recorded and told at the end.

        Args:
            uids: The particles.
            step: Where they are.
            lost: The files that are missing or damaged, by their paths inside the folder; may grow in the
                block. Without any, nothing is told.
        """
        engine, ledger = self._context._engine, Ledger()
        try:
            yield ledger
        except TTSVisionError as error:
            raise StorageError(
                f"Files that a search still needs must be in its folder but {_listed(lost) or 'those'} of "
                f"{_particles(uids, step)} are missing or damaged and cannot be made again: {error} Restore "
                "them, or start the search again in another folder."
            ) from error
        finally:
            for sampler in (self._context.sampler, *self._context._others.values()):
                sampler.bind(engine.ledger)
        if not lost:
            return
        message = (
            f"{_listed(lost)} of {_particles(uids, step)} were missing or damaged and were made again from "
            f"the trace, for {_priced(ledger.spent)} beyond the budget."
        )
        cost, now = ledger.read(), engine.ledger.read()
        engine.journal.append(
            Recovered(op=engine.op, uids=uids, step=step, cost=cost, message=message, spent=now)
        )
        warnings.warn(message, SearchWarning, stacklevel=3)


def with_recovered(spent: Spent, events: Iterable[Event]) -> Spent:
    """The cost of a search with that of everything that was made again, beyond the budget."""
    costs = [event.cost for event in events if event.kind == "recovered"]
    units = [unit.name for unit in fields(Cost)]
    total = {unit: getattr(spent, unit) + sum(getattr(cost, unit) for cost in costs) for unit in units}
    calls = dict(spent.calls)
    for cost in costs:
        for name, n in cost.calls.items():
            calls[name] = calls.get(name, 0) + n
    return spent.model_copy(update={**total, "calls": calls})


def _is_whole(path: Path) -> bool:
    """Whether a sample is there and, as far as its end shows, was written to its end."""
    if not is_file(path):
        return False
    content = path.read_bytes()[-len(_PNG_END) :]
    return content == _PNG_END if path.suffix == ".png" else bool(content)


class _Replay:
    """Computes rows of a trace again, event by event."""

    def __init__(self, context: SearchContext, ledger: Ledger, lost: list[str]) -> None:
        self._context, self._ledger, self._lost = context, ledger, lost
        self._journal = context._engine.journal
        self._events: list[Event] = list(context.events)
        self._family = Family()
        self._makers: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, event in enumerate(self._events):
            self._family.add(event)
            if event.kind == "birth" or (event.kind == "computed" and event.what != "decode"):
                for uid in event.uids:
                    self._makers[uid, event.step].append(i)
        self._made: dict[int, State] = {}

    def rows(self, uids: Sequence[int], step: int) -> State:
        """Particles at a step."""
        wanted = [self._maker(uid, step, len(self._events)) for uid in uids]
        needs = self._needs(wanted)
        last = {need: i for i in sorted(needs) for need in needs[i]}
        last |= dict.fromkeys(wanted, len(self._events))
        for i in sorted(needs):
            if i not in self._made:
                self._made[i] = self._make(i)
            for need in set(needs[i]):
                if last[need] == i:
                    del self._made[need]
        return self._picked(uids, wanted)

    def _needs(self, wanted: Sequence[int]) -> dict[int, list[int]]:
        """The events that must be made again or loaded, each with those that its rows come from."""
        needs: dict[int, list[int]] = {}
        todo = [(i, True) for i in wanted]
        while todo:
            i, is_direct = todo.pop()
            if i in needs:
                continue
            event = self._event(i)
            stored = self._stored(event)
            if stored is not None:
                self._made[i], needs[i] = stored, []
                continue
            if is_direct and event.kind == "computed" and event.blob:
                self._lost.append(f"{STATE}/{event.blob}")
            needs[i] = [self._maker(uid, event.from_step, i) for uid in _origins(event)]
            todo += [(need, is_direct and event.kind == "birth") for need in needs[i]]
        return needs

    def _maker(self, uid: int, step: int, before: int) -> int:
        """The last event before another that made a particle at a step."""
        found = self._makers[uid, step]
        at = bisect_left(found, before)
        if not at:
            raise StorageError(f"the trace has no event that made particle {uid} at step {step}.")
        return found[at - 1]

    def _event(self, i: int) -> Birth | Computed:
        event = self._events[i]
        assert isinstance(event, (Birth, Computed))
        return event

    def _stored(self, event: Birth | Computed) -> State | None:
        if event.kind != "computed" or event.blob is None:
            return None
        like = State(
            torch.empty(len(event.uids), 0, device="meta"),
            event.step,
            event.uids,
            tuple(map(self._condition, event.uids)),
            self._context.seed,
        )
        try:
            state = self._journal.load(event.blob, like, event.uids, event.step)
        except StorageError:
            return None
        return None if state.is_placeholder else state

    def _make(self, i: int) -> State:
        event = self._event(i)
        sampler = self.sampler(event.uids[0])
        origins = _origins(event)
        if not origins:
            return self._drawn(sampler, event.uids)
        rows = self._picked(origins, [self._maker(uid, event.from_step, i) for uid in origins])
        if event.kind == "birth":
            return self._born(sampler, rows, event)
        state = self._advanced(sampler, rows, event)
        return self._journal.save(state, event.op, event.first)[0] if event.blob else state

    def _drawn(self, sampler: Sampler, uids: Sequence[int]) -> State:
        parts = []
        for uid in uids:
            parts.append(sampler.init(self._condition(uid), [uid], seed=self._context.seed).to("cpu"))
        return State.cat(parts)

    def _born(self, sampler: Sampler, parents: State, event: Birth) -> State:
        children = parents.select(range(len(parents)), event.uids)
        if event.conditions:
            children = replace(children, conditions=tuple(map(self._condition, event.uids)))
        return sampler.apply(from_description(event.move), children)

    def _advanced(self, sampler: Sampler, rows: State, event: Computed) -> State:
        context, steps = self._context, event.step - event.from_step
        verifier = context.verifier

        def advance(part: State) -> State:
            return sampler.advance(part, steps).to("cpu")

        def differentiate(part: State) -> State:
            prompts = [context.prompt] * len(part)
            return with_gradient(sampler, part, steps, lambda x: safe_rewards(verifier, x, prompts)[0])

        if event.what == "gradient":
            self._ledger.charge(Cost(decodes=len(rows)))
            self._ledger.charge_calls(verifier.calls(len(rows)))
        work = differentiate if event.what == "gradient" else advance
        return State.cat(context._engine.halving(rows, work))

    def _picked(self, uids: Sequence[int], makers: Sequence[int]) -> State:
        """The rows of particles, in their order, from the states that have them."""
        parts = [(self._made[i], self._made[i].uids.index(uid)) for uid, i in zip(uids, makers)]
        first = parts[0][0]
        if all(state is first for state, _ in parts):
            return first.select([row for _, row in parts])
        return State.cat([state.select([row]) for state, row in parts])

    def _condition(self, uid: int) -> Condition:
        described = self._family.condition_of(uid)
        if described is None:
            return self.sampler(uid).condition_of(self._context.prompt)
        return Condition.from_description(described, self._journal.asset)

    def sampler(self, uid: int) -> Sampler:
        """The sampler of a particle."""
        name = self._family.born[uid].sampler
        sampler = self._context.sampler if name is None else self._context.using(name).sampler
        sampler.bind(self._ledger)
        return sampler


def _origins(event: Birth | Computed) -> tuple[int, ...]:
    """The particles whose rows an event starts from."""
    return event.parents if event.kind == "birth" else event.uids


def _particles(uids: Sequence[int], step: int) -> str:
    return f"{'particle' if len(uids) == 1 else 'particles'} {_listed(uids)} at step {step}"


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:4]))
    return f"{shown}, ..." if len(values) > 4 else shown


def _priced(cost: Cost) -> str:
    units = [(unit.replace("_", " "), value) for unit, value in asdict(cost).items() if value]
    return ", ".join(f"{value:g} {unit}" for unit, value in units) or "nothing"
