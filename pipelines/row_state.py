"""What the rows of a state of a diffusers pipeline carry beside solver history: whose inputs, whose noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tts_vision.pipelines.caches import CACHES
from tts_vision.pipelines.edits import EDITS
from tts_vision.pipelines.proxy import Step
from tts_vision.pipelines.rules import Rule
from tts_vision.pipelines.stochastic import Level
from tts_vision.pipelines.trees import check_alike
from tts_vision.rng import row_generator, row_noise, row_seed
from tts_vision.types import Rows, State

ORIGIN = "root_uid"  # the particle whose seed the inputs of a row are prepared with
INTERRUPTED = "interrupted"
FLAGGED_ROWS = "flagged"
ADOPTED = "adopted"  # width and height that the image of an adopted row decodes to


def generator_of(seed: int) -> torch.Generator:
    """A fresh generator on the CPU, as the pipeline's own call would be given."""
    return torch.Generator("cpu").manual_seed(seed)


def numbers(values: Sequence[int]) -> Tensor:
    """Whole numbers as rows to carry, ``(B,)``."""
    return torch.tensor(list(values), dtype=torch.long)


def origins_of(state: State) -> list[int]:
    """For each row the particle whose seed its inputs are prepared with: its own, or that of its parent."""
    origins = state.carry.get(ORIGIN)
    return [int(uid) for uid in origins] if isinstance(origins, Tensor) else list(state.uids)


def flags_of(state: State, name: str) -> list[bool]:
    """A carried flag of each row; false where none is carried."""
    flags = state.carry.get(name)
    return [bool(flag) for flag in flags] if isinstance(flags, Tensor) else [False] * len(state)


def joined(rows: list[State]) -> State:
    """Rows that were computed one by one, of which a callback may have interrupted some.

    Those have no solver history of the last step, and need none.

    Raises:
        PipelineError: If their caches or the edits of their callback hold different parts.
    """
    going = [(row.carry, row.shared) for row in rows if not flags_of(row, INTERRUPTED)[0]]
    check_alike(going, (CACHES, EDITS))
    lead = next((row for row in rows if not flags_of(row, INTERRUPTED)[0]), rows[0])
    filled = [
        row
        if row.carry.keys() == lead.carry.keys()
        else replace(row, carry={k: row.carry.get(k, v) for k, v in lead.carry.items()})
        for row in rows
    ]
    return replace(State.cat(filled), shared=lead.shared)


def generator_rows(generators: list[torch.Generator], uids: Sequence[int]) -> dict[str, Tensor | Rows]:
    """The generators as rows that are reindexed with the particles."""
    return {
        "rng": torch.stack([generator.get_state() for generator in generators]),
        "rng_uid": torch.tensor(list(uids), dtype=torch.long),
    }


def generators_of(state: State) -> list[torch.Generator]:
    """One generator per row, from the seed that its initial noise came from.

    With these the pipeline prepares the same inputs in every segment. Forks keep those of their parent.
    """
    return [generator_of(row_seed(state.seed, origin)) for origin in origins_of(state)]


def streams_of(state: State, native_noise: bool) -> list[Tensor | None] | None:
    """The generator state of each row from its next step on; None where the loop draws no noise.

    A plain call of the pipeline continues with the generator that it prepared its inputs with, so it makes an
    unforked row again from its seed. A fork gets a fresh generator.

    Args:
        state: The rows.
        native_noise: Whether steps of the scheduler draw.
    """
    if not native_noise and "rng" not in state.carry:
        return None
    states, owners = state.carry.get("rng"), state.carry.get("rng_uid")
    streams: list[Tensor | None] = []
    for i, (uid, origin) in enumerate(zip(state.uids, origins_of(state))):
        if isinstance(states, Tensor) and isinstance(owners, Tensor) and int(owners[i]) == uid:
            streams.append(states[i].cpu())
        elif state.step == 0 and origin == uid:
            streams.append(None)
        else:
            streams.append(row_generator(state.seed, "step", uid, state.step, "cpu").get_state())
    return streams


def keyed(rule: Rule | None, state: State) -> Step | None:
    """A stochastic step with noise keyed by the rows of a state; None if there is no rule."""
    if rule is None:
        return None
    uids, seed = state.uids, state.seed

    def step(
        x: Tensor, output: Tensor, x0: Tensor, eps: Tensor, levels: Sequence[Level], index: int
    ) -> tuple[Tensor, Tensor, float]:
        noise = row_noise(seed, "step", uids, index, x.float())
        return rule(x.float(), output.float(), x0, eps, levels[index], levels[index + 1], noise)

    return step
