"""What TTS-VAR costs on Infinity-2B: `python -m tts_vision.eval.var_costs`.

Runs the search itself, charged by the same ledger as any other, on a stand-in for Infinity-2B that answers at
random: tokens, passes and decodes are those of the real model, and nothing of its size is computed. Takes a
minute and writes ``eval/results/var_costs.md``.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.tts_var import tts_var
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.pipelines.var import infinity
from tts_vision.pipelines.var.bsq_vae import BSQVAE, VAES
from tts_vision.pipelines.var.cache import CacheShape, KVCache
from tts_vision.pipelines.var.given import NOTHING, Given
from tts_vision.pipelines.var.infinity import macs_of_scale
from tts_vision.pipelines.var.model import PlainTokens
from tts_vision.pipelines.var.schedules import Schedule, schedule_for
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.types import Media, Modality, Prompt, Score

CPU = torch.device("cpu")
WORDS = 30  # tokens of the prompt
RELEASED_DECODES = 56  # of the released code: every candidate after every scale, and the end once more
FEATURES = "tts_vision.eval.var_costs:Brightness"
PROMPT = Prompt("a prompt of thirty tokens")


@dataclass(frozen=True)
class CountedModel(PlainTokens):
    """Infinity-2B without weights: random bits, uniform images, true counts."""

    schedule: Schedule
    branches: int = 2
    device: torch.device = CPU
    stride: int = VAES["2b"].stride
    given: Given = NOTHING

    def begun(self, condition: Condition) -> Tensor:
        return torch.empty(1, 0, infinity.SIZES["2b"].bits, dtype=torch.uint8)

    overrides: frozenset[str] = frozenset()

    def encode(self, condition: Condition) -> None:
        return None

    def words(self, condition: Condition) -> int:
        return WORDS

    def cache(self, rows: int) -> KVCache:
        return KVCache.empty(cache_shape(self.schedule, self.branches), rows)

    def probability(self, encoded: Any, tokens: Tensor, scale: int, cache: KVCache) -> Tensor:
        shape = cache.shape
        size = (shape.branches * len(tokens), shape.heads, self.schedule.lengths[scale], shape.head_dim)
        # of no memory: the model's own activations are not the cache's
        new = torch.empty(1, device=shape.device, dtype=shape.dtype).expand(size)
        for layer in range(shape.layers):
            cache.extended(layer, new, new)
        cache.grow(self.schedule.lengths[scale])
        return torch.full((len(tokens), self.schedule.lengths[scale], infinity.SIZES["2b"].bits), 0.5)

    def features(self, tokens: Tensor) -> Tensor:
        """The share of set bits is the brightness of the image, so that candidates differ."""
        share = tokens.float().mean((1, 2)) if tokens.shape[1] else torch.zeros(len(tokens))
        return share[:, None, None, None].expand(-1, 3, *self.schedule.final)

    def with_expected(self, features: Tensor, probability: Tensor, scale: int) -> Tensor:
        return features

    def pixels(self, features: Tensor) -> Tensor:
        return features

    def macs(self, scale: int, words: int) -> int:
        return macs_of_scale(infinity.SIZES["2b"], self.schedule, scale, words)


@dataclass(frozen=True)
class CountedPipeline:
    """The stand-in."""

    name: str = "Infinity-2B (counted)"

    def configured(self, call: dict[str, Any]) -> CountedModel:
        return CountedModel(schedule_for(1.0))


class Brightness:
    """Scores and embeds by mean brightness."""

    name = "brightness"
    accepts: frozenset[Modality] = frozenset({"image"})

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(value=float(np.asarray(image).mean())) for image in media]

    def features(self, media: Sequence[Media]) -> Tensor:
        return torch.tensor([[float(np.asarray(image).mean())] for image in media])


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors on the meta device that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._count(tensor)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self.tensors.get(key):
            self.now += size
            self.peak = max(self.peak, self.now)
        self.tensors[key] = self.tensors.get(key, 0) + 1
        weakref.finalize(tensor, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.tensors[key] -= 1
        if not self.tensors[key]:
            self.now -= size


@dataclass(frozen=True)
class Row:
    """A search, the ledger's account of it, and the peak of its keys and values in bytes."""

    name: str
    tokens: float
    macs: float
    decodes: int
    decode_macs: float
    peak: float


def decode_macs(side: int) -> float:
    """Multiply-accumulates of one decode of Infinity-2B's tokenizer to ``side x side`` pixels."""
    with torch.device("meta"):
        vae = BSQVAE(VAES["2b"])
        cells = side // VAES["2b"].stride
        with FlopCounterMode(display=False) as counter:
            vae.decoder(torch.empty(1, VAES["2b"].channels, cells, cells))
    return counter.get_total_flops() / 2


def cache_shape(schedule: Schedule, branches: int = 2) -> CacheShape:
    """The keys and values of Infinity-2B in bfloat16, on a device without memory."""
    config, room = infinity.SIZES["2b"], schedule.starts[-2]
    return CacheShape(
        config.depth, branches, config.heads, room, config.head_dim, device="meta", dtype=torch.bfloat16
    )


def run(name: str, search: Any, preview_side: int = 1024) -> Row:
    """Runs one search on the stand-in.

    Args:
        name: What it is called in the table.
        search: The algorithm, with its parameters.
        preview_side: Pixels that previews are decoded at.
    """
    options = SamplerOptions(preview_size=preview_side)
    ctx = SearchContext(ScaleSampler(CountedPipeline(), options=options), Brightness(), PROMPT, seed=0)
    with Peak() as peak:
        search(ctx)
    spent = ctx.ledger.spent
    finals = len(ctx.candidates)
    previews = spent.decodes - finals
    pixels = previews * decode_macs(preview_side) + finals * decode_macs(1024)
    return Row(name, spent.tokens, spent.macs, spent.decodes, pixels, peak.peak)


def rows() -> list[Row]:
    """All rows of the table."""
    one = run("one sample", lambda ctx: best_of_n(ctx, n=1))
    full = run("TTS-VAR, full-size decodes", lambda ctx: tts_var(ctx, n=8, features=FEATURES, lam=10.0))
    released = replace(
        full,
        name="TTS-VAR, decodes as released",
        decodes=RELEASED_DECODES,
        decode_macs=RELEASED_DECODES * decode_macs(1024),
        peak=float("nan"),
    )
    small = run(
        "TTS-VAR, `--preview-size 256`", lambda ctx: tts_var(ctx, n=8, features=FEATURES, lam=10.0), 256
    )
    return [one, released, full, small, run("best of 8", lambda ctx: best_of_n(ctx, n=8))]


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown, relative to the first."""
    one = found[0]
    lines = [
        "| search | tokens | transformer TMAC | decodes | decode TMAC | in all, TMAC | keys and values, GB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        lines.append(
            f"| {row.name} | {row.tokens / one.tokens:.2f}x | {row.macs / 1e12:.1f} "
            f"({row.macs / one.macs:.2f}x) | {row.decodes} | {row.decode_macs / 1e12:.1f} "
            f"| {(row.macs + row.decode_macs) / 1e12:.0f} "
            f"| {'-' if row.peak != row.peak else f'{row.peak / 1e9:.2f}'} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and writes the table.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("eval/results/var_costs.md"))
    options = parser.parse_args(arguments)
    per_row = cache_shape(schedule_for(1.0)).bytes_per_row
    text = table(rows()) + f"\nKeys and values of a candidate in bfloat16: {per_row / 1e9:.2f} GB.\n"
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


if __name__ == "__main__":
    main()
