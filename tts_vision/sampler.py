"""The base class of samplers: the adapter of a generator, driven one decision step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import CapabilityError, ForkError
from tts_vision.moves import PREVIEW, Blend, Move, StepNoise
from tts_vision.rng import row_noise
from tts_vision.tokens import groups
from tts_vision.types import Cost, Decoded, Meter, Modality, NoMeter, Prompt, State

RewardFunction: TypeAlias = "Callable[[Tensor], Tensor]"


class Sampler(ABC):
    """Drives a generator one decision step at a time.

    A subclass sets the attributes and defines `init`, `advance`, `decode` and `cost`; every further method
    goes with a capability. It never draws from a shared generator: the initial noise of a row comes from
    `tts_vision.rng.row_seed(seed, uid)`, its later noise from ``(seed, uid, step)``; see
    `tts_vision.rng.row_noise`. It never changes a state in place. Before a forward it reports the cost to
    `meter`.

    Attributes:
        name: Shown in reports.
        modality: Kind of samples that it decodes.
        num_steps: Decision steps of a whole trajectory.
        last_noisy_step: The last step that adds fresh noise; -1 when none does. Copies of a particle made at
            a later step could never differ.
        shares_forwards: Whether rows of equal latents and conditions share one forward, as those of token
            models may.
        draws_start: Where it shares forwards, whether particles at step 0, and those that are sent back to an
            earlier step, are drawn by uid, so that no two are equal there.
        preview_shows_step: Whether a preview depends on the randomness of the last step, as that of tokens
            does. An x0 estimate is made before the noise of its step is added.
        grid: Rows and columns of its tokens, where latents are a grid of them over the image.
        units: The decision step at which each unit of a sample begins that is made one after the other, such
            as the chunks of a clip; empty where a sample is made as a whole. At these steps, and at the end,
            the units before are finished, a preview shows them, and conditions may change.
        branch_noise: The noise that units of forks begin with: ``fresh``, their own, or ``shared_root``, that
            of the particle which all come from.
        own_options: Those of `tts_vision.config.OF_SOME_SAMPLERS` that it reads.
        capabilities: The abilities that algorithms may ask for:

            ``noise``       the state at step 0 is Gaussian noise that may be replaced;
            ``stochastic``  steps add fresh noise, so copies of a particle diverge;
            ``step_noise``  the noise of the last step is carried and may be replaced;
            ``moves``       the randomness of some steps can be redone; see `move`;
            ``renoise``     a state can be sent back to an earlier step;
            ``preview``     an unfinished state can be decoded as an estimate of its end;
            ``adopt``       an image can be put at the end of a trajectory; see `adopt`;
            ``edits``       trajectories start from the image of a condition that is named ``image``;
            ``differentiable``  gradients go back through its steps; see `gradient`.
        meter: Where spending is reported.
    """

    name: str
    modality: Modality = "image"
    num_steps: int
    last_noisy_step: int = -1
    shares_forwards: bool = False
    draws_start: bool = False
    preview_shows_step: bool = False
    grid: tuple[int, int] | None = None
    units: tuple[int, ...] = ()
    branch_noise: Literal["fresh", "shared_root"] = "fresh"
    own_options: ClassVar[frozenset[str]] = frozenset()
    capabilities: frozenset[str] = frozenset()
    meter: Meter = NoMeter()

    def bind(self, meter: Meter) -> None:
        """Reports all spending to `meter` from now on."""
        self.meter = meter

    def condition_of(self, prompt: Prompt) -> Condition:
        """The condition for a user's prompt: its text, and the metadata that the generator reads."""
        return Condition(prompt.text)

    @abstractmethod
    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        """Fresh particles at step 0, one per uid; see `State.initial`.

        Raises:
            ConfigError: If the generator cannot take the condition, for example because an override would
                change the number of steps.
        """

    @abstractmethod
    def advance(self, state: State, steps: int = 1) -> State:
        """The state `steps` decision steps later. Its rows may differ in their conditions."""

    @abstractmethod
    def decode(self, state: State) -> Sequence[Decoded]:
        """The finished samples; `Invalid` in the place of one that must not be judged."""

    @abstractmethod
    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        """The cost of one row from `step` on for `steps` steps."""

    def preview_cost(self, condition: Condition, step: int) -> Cost:
        """The cost of a row's preview at `step` besides decoding it; none by default.

        A sampler whose previews ask the network reports that cost to `meter` as well, before it does.
        """
        return Cost()

    def preview(self, state: State) -> Sequence[Decoded]:
        """The x0 estimates, decoded; needs at least one step done (capability ``preview``)."""
        raise self._cannot("preview", "decoding an unfinished sample")

    def plain(self, condition: Condition, uids: Sequence[int], *, seed: int) -> Sequence[Decoded]:
        """The finished samples of `uids` by the generator's own call, which no search takes part in.

        The independent measure of `init`, `advance` and `decode`; see `tts_vision.check`.

        Raises:
            CapabilityError: If the generator has no such call.
        """
        raise CapabilityError(
            f"Plain samples need a generator with a call of its own but {self.name!r} names none; define "
            "`plain` in its sampler."
        )

    def facts(self, condition: Condition) -> dict[str, Any]:
        """How samples of a condition are generated, for the metadata of their files; none by default.

        Values are strings, or anything that JSON can hold. Common names are ``steps``, ``guidance_scale``,
        ``negative_prompt``, ``scheduler``, ``model_id`` and ``pipeline_kwargs``, the arguments of the
        generator's own call. ``plain`` says whether that call, with the seed of a row, makes the sample of an
        unforked row again.
        """
        return {}

    def renoise(self, state: State, to_step: int) -> State:
        """The state sent back to the earlier `to_step` with fresh noise (capability ``renoise``)."""
        raise self._cannot("renoise", "going back to an earlier step")

    def adopt(self, state: State, to_step: int, noise: Tensor) -> State:
        """The images that conditions name `ORIGINAL`, as finished particles (capability ``adopt``).

        They decode to these images themselves, at the size of the generator's samples, and unless the sampler
        ``edits`` they can be sent back to an earlier step.

        Args:
            state: Particles at step 0.
            to_step: The end of the trajectory.
            noise: ``(B, ...)`` standard normal, for schedules that end with some noise.
        """
        raise self._cannot("adopt", "starting from an image")

    def remasking(self, tokens: Sequence[int], to_step: int) -> Move | None:
        """The move that draws chosen tokens of a finished state again and keeps the others, if there is one.

        Args:
            tokens: Their numbers, row by row of the `grid`.
            to_step: The earlier step, at least 1, from which on they are drawn.
        """
        return None

    def unit_at(self, seconds: float) -> int | None:
        """The unit that a finished clip shows at a time; None where that is not known."""
        return None

    def move(self, step: int, strength: float) -> Move | None:
        """The move that redoes part of the randomness behind a state at `step`; None if there is none.

        By default the initial noise is blended at step 0, and the noise of the step before later, where the
        sampler has ``noise`` and ``step_noise``.

        Args:
            step: Of the parents.
            strength: From 0, which changes nothing, to 1, which draws everything anew: the share of the
                randomness that is new is its square.
        """
        if step == 0:
            return Blend(strength) if "noise" in self.capabilities else None
        carries = "step_noise" in self.capabilities and step - 1 <= self.last_noisy_step
        return StepNoise(strength) if carries and step < self.num_steps else None

    def recondition(self, state: State) -> State:
        """Takes up the new conditions of a state, whose rows carry what the old ones left.

        By default any condition is taken at any step, and only the preview is dropped.

        Raises:
            ConfigError: If the generator cannot take one of them.
            CapabilityError: If it cannot at this step.
        """
        return replace(state, carry={key: v for key, v in state.carry.items() if key != PREVIEW})

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        """`advance`, with the gradient of a reward with respect to the latents of `state`.

        Args:
            state: Where to start.
            steps: How many steps to take, at least 1, and to go back through.
            reward: Rewards ``(B,)`` of pixels ``(B, 3, H, W)``, of clips ``(B, T, 3, H, W)``, in [0, 1]: of
                the final sample, or of the x0 estimate if the trajectory is unfinished.

        Returns:
            The state that `advance` returns, without a graph, which carries besides:

            ``reward``          ``(B,)`` float64;
            ``gradient``        ``(B, ...)`` float32, of the reward by the latents of `state`;
            ``gradient_scale``  ``(B,)``, the factor on those latents on entry into the step;
            ``guidance_gain``   ``(B,)``, how far the step moves when the score at its start moves by one;
                                for a single step, where noise levels are known.
        """
        raise self._cannot("differentiable", "a gradient")

    def gradient_cost(self, condition: Condition, step: int, steps: int) -> Cost:
        """The cost of `gradient` for one row; decoding and the verifier apart.

        Going back through a step counts as many nfe as going forth, and so does each time that it is
        computed again on the way back.
        """
        raise self._cannot("differentiable", "a gradient")

    def apply(self, move: Move, state: State) -> State:
        """The children that `move` makes; `state` has a row for each, with its uid and its condition.

        Raises:
            CapabilityError: If the move needs a capability that the sampler lacks.
        """
        step = move.target(state.step)
        if state.is_placeholder:
            return replace(state, step=step)
        noise = state.latents
        if move.draws_noise:
            like = move.noise_like(state)
            noise = row_noise(state.seed, "mutate", state.uids, state.step, like)
        children = move.apply(self, state, noise)
        return replace(children.to("cpu"), keepalive=state.keepalive)

    def price(self, state: State, steps: int) -> Cost:
        """The cost of `advance(state, steps)` for all rows.

        Rows that agree in latents and condition pay once for the first step where they share its forward.
        """
        total = Cost()
        for condition, rows in _counted(state.conditions).items():
            total += self.cost(condition, state.step, steps) * rows
        if self.shares_forwards and steps and not state.is_placeholder:
            for i in set(range(len(state))) - set(shared_rows(state)[0]):
                total -= self.cost(state.conditions[i], state.step, 1)
        return total

    def requires(self, capability: str, what: str) -> None:
        """Checks that the sampler has a capability.

        Raises:
            CapabilityError: If it lacks it.
        """
        if capability and capability not in self.capabilities:
            raise self._cannot(capability, what)

    def requires_fork(self, step: int) -> None:
        """Checks that copies of a particle made at `step` would diverge.

        Raises:
            ForkError: If they would not.
        """
        last = self.last_noisy_step
        if step <= last:
            return
        why = (
            f"no step after {last} adds noise and this is step {step}"
            if last >= 0
            else f"sampler {self.name!r} adds no noise after its start"
        )
        raise ForkError(
            f"Copies of a particle must be able to differ, but {why}; build it with stochastic=True, fork "
            "earlier, or use ctx.mutate or ctx.renoise."
        )

    def _cannot(self, capability: str, what: str) -> CapabilityError:
        remedy = (
            "build it with stochastic=True."
            if capability in {"stochastic", "step_noise"}
            else "use another model, without offloading, or another algorithm."
            if capability == "differentiable"
            else "use another algorithm or model."
        )
        return CapabilityError(
            f"{what[0].upper()}{what[1:]} needs a sampler with {capability!r} but {self.name!r} has "
            f"{sorted(self.capabilities)}; {remedy}"
        )


def shared_rows(state: State) -> tuple[list[int], list[int]]:
    """The first of each set of rows that agree in latents and condition; for each row, which of these.

    Only those rows have to be computed: ``computed = work(state.select(first))``, then
    ``computed.select(of_row)``.
    """
    first, of_row = groups(state.latents)
    if len(set(state.conditions)) == 1:
        return first, of_row
    numbers: dict[tuple[int, Condition], int] = {}
    firsts: list[int] = []
    found: list[int] = []
    for i, key in enumerate(zip(of_row, state.conditions)):
        number = numbers.setdefault(key, len(numbers))
        if number == len(firsts):
            firsts.append(i)
        found.append(number)
    return firsts, found


def _counted(conditions: Sequence[Condition]) -> dict[Condition, int]:
    counts: dict[Condition, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    return counts
