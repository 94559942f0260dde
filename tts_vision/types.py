"""The types that samplers, verifiers and search algorithms share.

A search moves a `State` (a batch of partial generations, the *particles*) through a `Sampler`,
scores what it decodes with a `Verifier`, and never changes a state in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tts_vision.condition import Condition, distinct
from tts_vision.errors import ConfigError

Modality: TypeAlias = Literal["image", "video"]
Phase: TypeAlias = Literal["encode", "denoise", "decode", "verify", "ask"]


@dataclass(frozen=True)
class Prompt:
    """The prompt that the user asked for, which samples are judged by.

    Attributes:
        text: The prompt as the user wrote it.
        metadata: Facts for evaluators, for example a GenEval record. Verifiers that understand it may use
            it; all others read `text` alone.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Video:
    """A decoded clip: `frames` is ``(T, H, W, 3)`` uint8 on the CPU, `fps` in frames per second."""

    frames: Tensor
    fps: float = 8.0


Media: TypeAlias = Image.Image | Video


@dataclass(frozen=True)
class Invalid:
    """The result of decoding in the place of a sample that must not be judged.

    Attributes:
        reason: Why, for example "pixels that are no finite numbers".
        media: The pixels, where there are any: they are stored, but never scored.
    """

    reason: str
    media: Media | None = None


Decoded: TypeAlias = Media | Invalid

Region: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of an image, as shares of its width and height."""

FAILS_AT = "fails_at"
"""Part of a score: seconds from the start of a clip at which it first fails; absent where it does not."""

_INVALID = "invalid sample: "


class Score(BaseModel):
    """A verifier's verdict on one sample.

    Attributes:
        value: Higher is better. NaN means that the sample could not be scored.
        parts: Named components of the value, for reports; `FAILS_AT` tells searches where a clip fails.
        reason: Why the value is what it is, or why there is none.
        satisfied: Whether all demands of the prompt are met; None where the verifier does not check demands.
            Of an answer to a question: whether it is yes.
        regions: The parts of the image that the reason is about, where the verifier locates them.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    value: float
    parts: dict[str, float] = Field(default_factory=dict)
    reason: str | None = None
    satisfied: bool | None = None
    regions: tuple[Region, ...] = ()

    @classmethod
    def unscored(cls, reason: str) -> Score:
        """The score of a sample that could not be scored."""
        return cls(value=float("nan"), reason=reason)

    @classmethod
    def of_invalid(cls, reason: str) -> Score:
        """The score of an `Invalid` sample, which no verifier is asked about."""
        return cls.unscored(_INVALID + reason)

    @property
    def is_invalid(self) -> bool:
        """Whether the sample was invalid, rather than one that a verifier could not score."""
        return math.isnan(self.value) and (self.reason or "").startswith(_INVALID)


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
        """The generator's compute, in the unit that compares: macs where they are counted, else nfe."""
        return self.macs or self.nfe

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other))))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(value * times for value in astuple(self)))


class Rows(tuple[Any, ...]):
    """Recomputable per-particle objects (KV caches). Not checkpointed; entries are None after resume."""

    def select(self, index: Sequence[int]) -> Rows:
        return Rows(self[i] for i in index)


@dataclass(frozen=True)
class State:
    """A batch of ``B`` partial generations (*particles*).

    Attributes:
        latents: ``(B, ...)`` latents, token grid or token prefix, as the generator takes them.
        step: Decision steps done; the same for all rows.
        uids: Identity of each row: its lineage and its noise stream.
        conditions: What each row is generated for.
        seed: Root seed of the search.
        carry: Everything else that belongs to a row (solver history, caches, the last x0 estimate); axis 0
            is the row.
        shared: What all rows share at this step (solver counters): tensors or plain JSON values.
        keepalive: Handles of the stored tensors that this state is made of; see `tts_vision.journal`.

    The tensors of a state at rest live on the CPU, whatever device the sampler computes on.
    """

    latents: Tensor
    step: int
    uids: tuple[int, ...]
    conditions: tuple[Condition, ...]
    seed: int
    carry: Mapping[str, Tensor | Rows] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    keepalive: frozenset[Any] = frozenset()

    @classmethod
    def initial(
        cls,
        latents: Tensor,
        uids: Sequence[int],
        condition: Condition,
        seed: int,
        carry: Mapping[str, Tensor | Rows] | None = None,
    ) -> State:
        """Particles at step 0 with one condition."""
        return cls(latents, 0, tuple(uids), (condition,) * len(uids), seed, carry or {})

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
            conditions=tuple(self.conditions[i] for i in index),
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
    def is_placeholder(self) -> bool:
        """Whether the tensors were dropped because a resumed search no longer needs them."""
        return self.latents.is_meta

    def placeholder(self) -> State:
        """This state without its tensors."""
        return replace(self, latents=torch.empty(self.latents.shape, device="meta"), carry={})

    def in_groups(self, key: Callable[[Condition], Any], work: Callable[[State], State]) -> State:
        """`work` on the rows of each group of conditions, joined again in the order of the rows.

        Args:
            key: Conditions of one group have the same key.
            work: Moves a state on; keeps the order of its rows.
        """
        groups: dict[Any, list[int]] = {}
        for condition in distinct(self.conditions):
            groups.setdefault(key(condition), [])
        for i, condition in enumerate(self.conditions):
            groups[key(condition)].append(i)
        if len(groups) < 2:
            return work(self)
        joined = State.cat([work(self.select(rows)) for rows in groups.values()])
        place = {row: at for at, row in enumerate(row for rows in groups.values() for row in rows)}
        return joined.select([place[i] for i in range(len(self))])

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """All rows of `states`, which must be at the same step of the same search.

        Raises:
            ValueError: If they are not.
        """
        first = states[0]
        if any(s.step != first.step or s.seed != first.seed for s in states):
            raise ValueError(
                "States that are joined must be at one step of one search but are at steps "
                f"{[s.step for s in states]} with seeds {[s.seed for s in states]}; advance them to the "
                "same step first."
            )
        uids = tuple(uid for s in states for uid in s.uids)
        conditions = tuple(condition for s in states for condition in s.conditions)
        keepalive = frozenset[Any]().union(*(s.keepalive for s in states))
        joined = replace(first, uids=uids, conditions=conditions, keepalive=keepalive)
        if any(s.is_placeholder for s in states):
            return replace(
                joined, latents=torch.empty((len(uids), *first.latents.shape[1:]), device="meta"), carry={}
            )
        if any(s.latents.shape[1:] != first.latents.shape[1:] for s in states):
            raise ValueError(
                "States that are joined must have latents of one shape but have "
                f"{[tuple(s.latents.shape[1:]) for s in states]}; give all particles the same size."
            )
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
                continue
            rows = [s.carry[key] for s in states]
            shapes = [tuple(row.shape[1:]) for row in rows if isinstance(row, Tensor)]
            if len(set(shapes)) > 1:
                raise ConfigError(
                    f"States that are joined must carry tensors of one shape but {key!r} has "
                    f"{sorted(set(shapes))}, as caches and callbacks leave for texts of different lengths; "
                    "pad the texts to one length (max_sequence_length), or search without them."
                )
            carry[key] = torch.cat(rows)  # type: ignore[arg-type]
        return replace(joined, latents=torch.cat([s.latents for s in states]), carry=carry)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    if tensor.is_meta:
        return torch.empty((len(rows), *tensor.shape[1:]), device="meta")
    return in_layout(tensor.index_select(0, rows.to(tensor.device)), layout_of(tensor))


def layout_of(tensor: Tensor) -> torch.memory_format:
    """How a tensor lies in memory; kernels, and so the last bits of results, depend on it."""
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.ndim == ndim and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


def in_layout(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """The tensor laid out in memory as `layout_of` said of another one."""
    return tensor if layout is torch.contiguous_format else tensor.contiguous(memory_format=layout)


class Meter(Protocol):
    """Where a sampler reports what it is about to spend. Implemented by the ledger."""

    def charge(self, cost: Cost) -> None:
        """Charges `cost` before it is spent."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Times the enclosed block as `name`."""


class NoMeter:
    """The meter of a sampler that belongs to no search: accepts every report and keeps none."""

    def charge(self, cost: Cost) -> None:
        return None

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        return nullcontext()


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
