"""The types that samplers, verifiers and search algorithms share.

A search moves a `State` (a batch of partial generations, the *particles*) through a `Sampler`,
scores what it decodes with a `Verifier`, and never changes a state in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Modality: TypeAlias = Literal["image", "video"]
Phase: TypeAlias = Literal["encode", "denoise", "decode", "verify"]


@dataclass(frozen=True)
class Prompt:
    """What to generate.

    Attributes:
        text: The prompt as the user wrote it.
        metadata: What an evaluator knows about it, for example a GenEval record. Verifiers that
            understand it may use it; all others read `text` alone.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Video:
    """A decoded clip: `frames` is ``(T, H, W, 3)`` uint8 on the CPU, `fps` in frames per second."""

    frames: Tensor
    fps: float = 8.0


Media: TypeAlias = Image.Image | Video


class Score(BaseModel):
    """A verifier's verdict on one sample.

    Attributes:
        value: Higher is better. NaN means that the sample could not be scored.
        parts: Named components of the value, for reports.
        reason: Why the value is what it is, or why there is none.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    parts: dict[str, float] = Field(default_factory=dict)
    reason: str | None = None

    @classmethod
    def unscored(cls, reason: str) -> Score:
        """The score of a sample that could not be scored."""
        return cls(value=float("nan"), reason=reason)


@dataclass(frozen=True)
class Cost:
    """What an operation costs.

    Attributes:
        nfe: Denoiser or transformer forwards, counted per row; classifier-free guidance counts two.
        decodes: Latents decoded to pixels.
        verifier_calls: Samples scored; by a verifier that is made of others, once for each that sees them.
        tokens: Tokens that went through a transformer, where steps differ in how many they take.
        macs: Multiply-accumulates of a transformer, where they are counted; 0 where they are not.
    """

    nfe: float = 0
    decodes: int = 0
    verifier_calls: int = 0
    tokens: float = 0
    macs: float = 0

    @property
    def compute(self) -> float:
        """What the generator computes, in the unit that compares: macs where they are counted, else nfe."""
        return self.macs or self.nfe

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(value * times for value in astuple(self)))


class Rows(tuple[Any, ...]):
    """One Python object per particle, for carried state that is no tensor.

    For what a sampler can make again, such as caches: it is not stored, and None after a search is resumed.
    """

    def select(self, index: Sequence[int]) -> Rows:
        return Rows(self[i] for i in index)


@dataclass(frozen=True)
class State:
    """A batch of ``B`` partial generations (*particles*) of one prompt.

    Attributes:
        latents: ``(B, ...)`` latents, token grid or token prefix, as the generator takes them.
        step: Decision steps done; the same for all rows.
        uids: Identity of each row: its lineage and its noise stream.
        prompt: What is generated.
        seed: Root seed of the search.
        carry: Everything else that belongs to a row (solver history, caches, the last prediction of
            the finished sample); axis 0 is the row.
        shared: What all rows share at this step (solver counters): tensors or plain JSON values.
        keepalive: Handles of the stored tensors that this state is made of; see `tts_vision.journal`.

    The tensors of a state at rest live on the CPU, whatever device the sampler computes on.
    """

    latents: Tensor
    step: int
    uids: tuple[int, ...]
    prompt: Prompt
    seed: int
    carry: Mapping[str, Tensor | Rows] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    keepalive: frozenset[Any] = frozenset()

    def __len__(self) -> int:
        return len(self.uids)

    def select(self, index: Sequence[int], uids: Sequence[int] | None = None) -> State:
        """Rows at `index`, in that order, repeats allowed. The only way to reindex a state.

        Args:
            index: Row numbers.
            uids: New identities of the chosen rows; their own by default.
        """
        rows = torch.as_tensor(list(index), dtype=torch.long)
        return replace(
            self,
            latents=_rows(self.latents, rows),
            uids=tuple(self.uids[i] for i in index) if uids is None else tuple(uids),
            carry={
                k: v.select(index) if isinstance(v, Rows) else _rows(v, rows) for k, v in self.carry.items()
            },
        )

    def to(self, device: torch.device | str) -> State:
        """The same state with its tensors on `device`."""
        return replace(
            self,
            latents=self.latents.to(device),
            carry={k: v if isinstance(v, Rows) else v.to(device) for k, v in self.carry.items()},
        )

    @property
    def is_ghost(self) -> bool:
        """Whether the tensors were dropped because a resumed search no longer needs them."""
        return self.latents.is_meta

    def ghost(self) -> State:
        """This state without its tensors."""
        return replace(self, latents=torch.empty(self.latents.shape, device="meta"), carry={})

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """All rows of `states`, which must stand at the same step of the same search.

        Raises:
            ValueError: If they do not.
        """
        first = states[0]
        if any(s.step != first.step or s.seed != first.seed or s.prompt != first.prompt for s in states):
            raise ValueError(
                "States that are joined must be at one step of one search but are at steps "
                f"{[s.step for s in states]}; advance them to the same step first."
            )
        uids = tuple(uid for s in states for uid in s.uids)
        keepalive = frozenset[Any]().union(*(s.keepalive for s in states))
        if any(s.is_ghost for s in states):
            latents = torch.empty((len(uids), *first.latents.shape[1:]), device="meta")
            return replace(first, latents=latents, uids=uids, carry={}, keepalive=keepalive)
        objects = {k for s in states for k, value in s.carry.items() if isinstance(value, Rows)}
        keys = set(first.carry) | objects
        if any(set(s.carry) | objects != keys for s in states):
            raise ValueError(
                f"States that are joined must carry the same entries but carry "
                f"{[sorted(s.carry) for s in states]}; take them from the same operations."
            )
        carry: dict[str, Tensor | Rows] = {}
        for key in keys:
            if key in objects:
                carry[key] = Rows(item for s in states for item in s.carry.get(key, [None] * len(s)))
            else:
                carry[key] = torch.cat([s.carry[key] for s in states])  # type: ignore[misc]
        latents = torch.cat([s.latents for s in states])
        return replace(first, latents=latents, uids=uids, carry=carry, keepalive=keepalive)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    if tensor.is_meta:
        return torch.empty((len(rows), *tensor.shape[1:]), device="meta")
    return tensor.index_select(0, rows.to(tensor.device))


class Meter(Protocol):
    """Where a sampler reports what it is about to spend. Implemented by the ledger."""

    def charge(self, cost: Cost) -> None:
        """Charges `cost` before it is spent."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Times the enclosed block as `name`."""


@runtime_checkable
class Sampler(Protocol):
    """The adapter of a generator: drives it one decision step at a time.

    Implementations never draw from a shared generator: a row's initial noise comes from
    `tts_vision.rng.row_seed(seed, uid)`, its later noise from ``(seed, uid, step)``.

    Attributes:
        name: Shown in reports.
        modality: What is decoded.
        num_steps: Decision steps of a whole trajectory.
        capabilities: What algorithms may ask for:

            ``noise``       the state at step 0 is Gaussian noise that may be replaced;
            ``stochastic``  steps add fresh noise, so copies of a particle diverge;
            ``step_noise``  the noise of the last step is carried and may be replaced;
            ``renoise``     a state can be sent back to an earlier step;
            ``preview``     an unfinished state can be decoded as an estimate of its end;
            ``tokens``      the state is tokens, ``(B, T, ...)``; carried are the uniform numbers that decided
                            those of the last step (``token_noise``) and the probabilities they were drawn
                            from (``token_probability``), see `tts_vision.tokens`; particles whose tokens
                            agree share one forward;
            ``differentiable``  gradients go back through its steps; see `DifferentiableSampler`.
        last_noisy_step: The last step that adds fresh noise; -1 when none does. Copies of a particle
            made at a later step could never differ.
    """

    name: str
    modality: Modality
    num_steps: int
    capabilities: frozenset[str]
    last_noisy_step: int

    def bind(self, meter: Meter) -> None:
        """Reports all spending to `meter` from now on."""

    def init(self, prompt: Prompt, uids: Sequence[int], *, seed: int) -> State:
        """Fresh particles at step 0, one per uid."""

    def advance(self, state: State, steps: int = 1) -> State:
        """The state `steps` decision steps later."""

    def renoise(self, state: State, to_step: int) -> State:
        """The state sent back to the earlier `to_step` with fresh noise (capability ``renoise``)."""

    def preview(self, state: State) -> list[Media]:
        """Estimates of the finished samples, decoded; needs at least one step done."""

    def decode(self, state: State) -> list[Media]:
        """The finished samples."""

    def cost(self, state: State, steps: int) -> Cost:
        """What `advance(state, steps)` is expected to cost for each row."""


RewardFunction: TypeAlias = "Callable[[Tensor], Tensor]"


@runtime_checkable
class DifferentiableSampler(Sampler, Protocol):
    """A sampler with the capability ``differentiable``."""

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        """`advance`, with the gradient of a reward with respect to the latents of `state`.

        Args:
            state: Where to start.
            steps: How many steps to take, at least 1, and to go back through.
            reward: Rewards ``(B,)`` of pixels ``(B, 3, H, W)``, of clips ``(B, T, 3, H, W)``, in [0, 1]: of
                finished samples, or before the end of their estimates as the last of the steps saw them.

        Returns:
            The state that `advance` returns, without a graph, which carries besides:

            ``reward``          ``(B,)`` float64;
            ``gradient``        ``(B, ...)`` float32, of the reward by the latents of `state`;
            ``gradient_scale``  ``(B,)``, what those latents were multiplied with on entry into the step;
            ``guidance_gain``   ``(B,)``, how far the step moves when the score at its start moves by one;
                                for a single step, where noise levels are known.
        """

    def gradient_cost(self, state: State, steps: int) -> Cost:
        """What `gradient` is expected to cost for each row; decoding and the verifier apart.

        Going back through a step counts as many nfe as going forth, and so does each time that it is
        computed again on the way back.
        """


@runtime_checkable
class Verifier(Protocol):
    """Scores samples against prompts.

    Attributes:
        name: Shown in reports.
        accepts: Modalities it can score.
    """

    name: str
    accepts: frozenset[Modality]

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per sample, in order. `media` and `prompts` have the same length."""


@runtime_checkable
class PooledVerifier(Verifier, Protocol):
    """A verifier whose values compare samples with each other, such as ranks.

    A search pools all its finished samples, so that every value is up to date whenever one is added.
    """

    def pool(self, scores: Sequence[Score]) -> list[float]:
        """The values of samples that are compared with each other, from their `Score.parts`.

        Returns:
            One value per score; NaN for those that are unscored.
        """


@runtime_checkable
class AnchoredVerifier(Verifier, Protocol):
    """A verifier that compares samples by looking at them, and can take one more into the comparison."""

    def score_beside(
        self, media: Sequence[Media], prompts: Sequence[Prompt], best: Media, best_score: Score
    ) -> list[Score]:
        """As `score`, with the best sample so far as an anchor that keeps its score."""


Charge: TypeAlias = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Anchor:
    """The best sample so far, for a verifier that compares others with it.

    Attributes:
        load: Gets its pixels.
        score: Its score.
    """

    load: Callable[[], Media]
    score: Score


@runtime_checkable
class CompositeVerifier(Verifier, Protocol):
    """A verifier that is made of others, each of which is charged and may fail by itself."""

    def calls(self, n: int) -> dict[str, int]:
        """How many calls of which verifier scoring `n` samples of one prompt takes."""

    def score_by_members(
        self, media: Sequence[Media], prompts: Sequence[Prompt], *, charge: Charge, anchor: Anchor | None
    ) -> list[Score]:
        """As `score`, for a caller who has paid for `calls`.

        Args:
            media: Samples.
            prompts: What each was generated for.
            charge: Called before further calls, such as those for samples that have to be tried alone.
            anchor: The best sample so far, for members that take it into their comparison.
        """


@runtime_checkable
class PreviewVerifier(Verifier, Protocol):
    """A verifier that learns, while a search runs, what the score of a preview says about the end."""

    def fit(self, pairs: Mapping[int, Sequence[tuple[float, float]]]) -> None:
        """Learns from pairs of a preview's score and its finished sample's, by the step of the preview."""

    def expected(self, score: Score, step: int) -> Score:
        """The score to expect of the finished sample, from that of its preview at `step`."""


@runtime_checkable
class DifferentiableVerifier(Verifier, Protocol):
    """A verifier that gives gradients with respect to pixels."""

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards that carry the gradient of `pixels`; as `score`, up to rounding and resizing.

        Args:
            pixels: ``(B, 3, H, W)`` in [0, 1], of any size, on any device; clips ``(B, T, 3, H, W)`` where
                it accepts them.
            prompts: One per sample.

        Returns:
            ``(B,)``, higher is better, on the device of `pixels`.
        """


@runtime_checkable
class FeatureExtractor(Protocol):
    """Embeds samples, for clustering and diversity.

    Attributes:
        name: Shown in reports.
        accepts: Modalities it can embed.
    """

    name: str
    accepts: frozenset[Modality]

    def features(self, media: Sequence[Media]) -> Tensor:
        """``(B, D)`` float32 on the CPU, one row per sample."""
