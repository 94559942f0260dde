"""Changes that a user's callback makes in a loop beside its latents, which belong to a particle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tts_vision.errors import CapabilityError
from tts_vision.types import Rows, State

EDITS = "callback"
"""The name under which particles carry them."""


@dataclass
class Edits:
    """The changes after some steps of a loop, which its next step reads.

    Attributes:
        tensors: Tensors of the loop, by name.
        attributes: Numbers and texts on the pipeline, by name.
        first: The step after which there was the first change; -1 before any.
        last: The step after which there was the last.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    first: int = -1
    last: int = -1

    def add(self, step: int, tensors: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        """Takes note of the changes after a step."""
        if not tensors and not attributes:
            return
        self.tensors.update(tensors)
        self.attributes.update(attributes)
        self.first, self.last = (step if self.first < 0 else self.first), step

    def __bool__(self) -> bool:
        return self.first >= 0


def at_earlier_step(state: State, to_step: int) -> tuple[dict[str, Tensor | Rows], dict[str, Any]]:
    """The part of what a state carries and shares that holds the changes at an earlier step.

    Raises:
        CapabilityError: If they are not known any more.
    """
    first, last = state.carry.get(f"{EDITS}/first"), state.carry.get(f"{EDITS}/last")
    if EDITS not in state.shared or not isinstance(first, Tensor) or not isinstance(last, Tensor):
        return {}, {}
    if int(last.max()) < to_step:
        carry = {key: rows for key, rows in state.carry.items() if key.startswith(f"{EDITS}/")}
        return carry, {EDITS: state.shared[EDITS]}
    if int(first.min()) >= to_step:
        return {}, {}
    raise CapabilityError(
        f"A particle can be sent back to step {to_step} if the tensors of its loop there are known but its "
        f"callback has changed them after steps {int(first.min())} to {int(last.max())}; let it change them "
        "once, or use an algorithm that does not send particles back."
    )
