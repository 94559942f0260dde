"""Re-creates a sample from its seed and its recorded lineage alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tts_vision.condition import Condition, Loader
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError, StorageError
from tts_vision.files import best_of, replace_file
from tts_vision.folders import has_result
from tts_vision.gradients import require_gradients, safe_rewards, with_gradient
from tts_vision.inputs import with_inputs
from tts_vision.journal import read_asset
from tts_vision.ledger import Ledger
from tts_vision.locks import check_free, one_writer
from tts_vision.media import all_valid, pixels, read_media, storable, write_media
from tts_vision.moves import from_description
from tts_vision.resolve import Live, find_algorithm, prepare
from tts_vision.results import Result, load_result
from tts_vision.sampler import Sampler
from tts_vision.trace import Ancestor
from tts_vision.trust import trusting
from tts_vision.types import Media, State
from tts_vision.verifier import FunctionVerifier

Samplers: TypeAlias = Mapping[str, Sampler]


@dataclass(frozen=True)
class Replay:
    """A sample that was made again.

    Attributes:
        media: The sample.
        path: Where it is stored.
        max_difference: Largest difference to the stored best sample, in 8-bit pixel values.
        lineage: How the particle came to be.
    """

    media: Media
    path: Path
    max_difference: int
    lineage: list[Ancestor]


def replay(
    folder: Path | str,
    pipe: Any = None,
    verifier: Any = None,
    samplers: Samplers | None = None,
    *,
    trust: bool = False,
) -> Replay:
    """Makes the best sample of a finished search again, from its configuration and lineage, and compares.

    The result is stored in the folder as ``replay``. One particle is computed at a time, so rounding may
    differ in the last bit from that of a batch.

    Args:
        folder: The result folder.
        pipe: The pipeline, if the search was started with a live one.
        verifier: The verifier, if the search used its gradients and was started with a live one.
        samplers: Further generators by name, if the algorithm used live ones.
        trust: Whether to run code and ask endpoints that the folder's configuration names, as in `resume`.

    Raises:
        ConfigError: If the folder holds no finished search, or one that asks for trust.
    """
    root = Path(folder)
    if not has_result(root):
        raise ConfigError(
            f"A replay needs a finished search but {str(root)!r} holds none; 'tts-vision resume {root}' "
            "finishes one."
        )
    check_free(root)
    result = load_result(root)
    with trusting(root, result.config, trust=trust):
        return _replayed(root, result, pipe, verifier, samplers)


def _replayed(root: Path, result: Result, pipe: Any, verifier: Any, samplers: Samplers | None) -> Replay:
    best = result.best
    entry = find_algorithm(result.config)
    guided = "differentiable" in entry.needs
    silent = FunctionVerifier(_never_scores)
    silent.questions = entry.asks
    # nothing is judged, so live verifiers may be missing, but for one whose gradients guided the search
    config = result.config.model_copy(update={"target": None, "holdout_verifier": None})
    config = with_inputs(config, root)
    setup = prepare(config, Live(pipe=pipe, verifier=verifier if guided else silent))
    chain = result.lineage(best.uid)
    ctx = SearchContext(
        setup.sampler, setup.verifier, setup.prompt, seed=config.seed, open_sampler=setup.open_sampler
    )
    media = recreate(ctx, chain, best.step, lambda name: read_asset(root, name), samplers)
    stored = best_of(root)
    if stored is None:
        raise StorageError(
            f"A finished search must hold its best sample but {str(root)!r} has no best.*; resume it."
        )
    path = root / f"replay{stored.suffix}"
    with one_writer(root):
        replace_file(path, lambda part: write_media(media, part, best.text), "The replayed sample")
    return Replay(media, path, _max_difference(read_media(path), read_media(stored)), chain)


def recreate(
    ctx: SearchContext, chain: Sequence[Ancestor], step: int, asset: Loader, samplers: Samplers | None = None
) -> Media:
    """The sample of the particle at the end of `chain`, decoded at `step`.

    Args:
        ctx: A context on the generator and the verifier of the search; its ledger is not charged.
        chain: The particle's lineage.
        step: Where it was decoded; before the end of the trajectory for a preview.
        asset: Gets the images and tensors of conditions by name.
        samplers: Further generators of the search by name; others are opened by name.
    """
    name = chain[0].sampler
    sampler = ctx.sampler if name is None else (samplers or {}).get(name) or ctx.using(name).sampler
    sampler.bind(Ledger())
    own = sampler.condition_of(ctx.prompt)
    first = chain[0].condition
    condition = own if first is None else Condition.from_description(first, asset)
    state = sampler.init(condition, [chain[0].uid], seed=ctx.seed).to("cpu")
    for child in chain[1:]:
        start = child.step if child.parent_step is None else child.parent_step
        move = from_description(child.move or {"name": child.origin})
        if start - move.gradient_steps > state.step:
            state = sampler.advance(state, start - move.gradient_steps - state.step).to("cpu")
        if move.gradient_steps:
            state = _with_gradient(ctx, sampler, state, move.gradient_steps)
        state = state.select([0], [child.uid])
        if child.condition is not None:
            state = replace(state, conditions=(Condition.from_description(child.condition, asset),))
        state = sampler.apply(move, state)
    if step > state.step:
        state = sampler.advance(state, step - state.step).to("cpu")
    decoded = (sampler.decode if step == sampler.num_steps else sampler.preview)(state)
    sampler.bind(ctx.ledger)
    return storable(all_valid(decoded, sampler.name)[0])


def _with_gradient(ctx: SearchContext, sampler: Sampler, state: State, steps: int) -> State:
    require_gradients(ctx.verifier, "a replay of this lineage")
    return with_gradient(
        sampler, state, steps, lambda pixels: safe_rewards(ctx.verifier, pixels, [ctx.prompt] * len(state))[0]
    )


def _max_difference(a: Media, b: Media) -> int:
    left, right = pixels(a).astype(np.int16), pixels(b).astype(np.int16)
    return int(np.abs(left - right).max()) if left.shape == right.shape else 255


def _never_scores(media: Iterable[Media], prompts: Iterable[str]) -> list[float]:
    return [float("nan") for _ in media]
