"""What the toolkit costs: best-of-n through it against a bare loop over the pipeline, and a step on its own.

``python -m tts_vision.eval.overhead`` draws the same images from the same seeds in batches of the same size:
by a bare loop, by a search, and by one that keeps everything in a folder, in turn. It prints the ratios of
the wall-clock times; the images must be identical. ``--segments`` measures instead what each segment of a
pipeline's loop costs beside its steps.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.results import Result, write_result
from tts_vision.rng import row_seed

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PROMPT = "two red circles left of a blue star"


def playground() -> tuple[Any, dict[str, Any]]:
    """The bundled model with its default arguments."""
    from tts_vision.pipelines.playground import DEFAULTS, load_pipeline

    return load_pipeline(), dict(DEFAULTS)


def tiny_sdxl() -> tuple[StableDiffusionXLPipeline, dict[str, Any]]:
    """Stable Diffusion XL's classes with small random weights: only its speed means anything."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<start>", "<end>", "<unk>", *PROMPT.split()]
    vocabulary = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=77,
    )
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=64,
        vocab_size=len(vocabulary.get_vocab()),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=(16, 32, 32),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=8,
            ),
            text_encoder=CLIPTextModel(text),
            text_encoder_2=CLIPTextModelWithProjection(text),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                layers_per_block=1,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(4, 8),
                cross_attention_dim=128,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=64 + 6 * 8,
                use_linear_projection=True,
            ),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        )
    return pipe, {"num_inference_steps": 20, "height": 64, "width": 64}


MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "playground": playground,
    "tiny SDXL": tiny_sdxl,
}


def bare_loop(pipe: Any, call: dict[str, Any], n: int, batch: int) -> list[np.ndarray]:
    """`n` images by the pipeline alone."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for first in range(0, n, batch):
        uids = range(first, min(first + batch, n))
        generators = [torch.Generator("cpu").manual_seed(row_seed(0, uid)) for uid in uids]
        images += pipe(PROMPT, num_images_per_prompt=len(uids), generator=generators, **call).images
    return [np.asarray(image) for image in images]


def toolkit(pipe: Any, call: dict[str, Any], n: int, batch: int, folder: Path | None = None) -> Result:
    """The same by a search, with a verifier that costs nothing."""
    return tts_vision.search(
        pipe,
        PROMPT,
        algorithm="best_of_n",
        algorithm_params={"n": n},
        budget=f"{n}x",
        seed=0,
        max_batch=batch,
        pipeline_kwargs=call,
        verifier=_no_opinion,
        output=folder,
    )


def images_of(result: Result) -> list[np.ndarray]:
    """The images of a search by uid."""
    by_uid = sorted(result.population, key=lambda candidate: candidate.uid)
    return [np.asarray(candidate.load()) for candidate in by_uid]


def _no_opinion(media: Sequence[Any], prompts: Sequence[str]) -> list[float]:
    return [0.0] * len(media)


@dataclass
class Comparison:
    """A search against the bare loop, in turn.

    Attributes:
        model: Name of the model.
        n: Samples of each.
        batch: Samples at once.
        bare: Seconds of the bare loop, by repeat.
        ratios: Those of a search without a folder, in relation to them.
        folder_ratios: Those of a search with a folder, its figures included.
        figures: Seconds that the figures of a folder take.
        identical: Whether all draw the same images.
    """

    model: str
    n: int
    batch: int
    bare: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    folder_ratios: list[float] = field(default_factory=list)
    figures: list[float] = field(default_factory=list)
    identical: bool = True

    def as_json(self) -> dict[str, Any]:
        """The medians and ranges, as JSON has them."""
        return {
            "model": self.model,
            "n": self.n,
            "batch": self.batch,
            "repeats": len(self.bare),
            "bare_seconds": round(statistics.median(self.bare), 3),
            "ratio": round(statistics.median(self.ratios), 3),
            "ratio_low": round(min(self.ratios), 3),
            "ratio_high": round(max(self.ratios), 3),
            "folder_ratio": round(statistics.median(self.folder_ratios), 3),
            "folder_ratio_low": round(min(self.folder_ratios), 3),
            "folder_ratio_high": round(max(self.folder_ratios), 3),
            "figure_seconds": round(statistics.median(self.figures), 3),
            "identical": self.identical,
        }

    def row(self) -> str:
        """A line of the table."""
        found = self.as_json()
        written = [
            f"{found[name]:.3f} [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]"
            for name in ("ratio", "folder_ratio")
        ]
        same = "yes" if self.identical else "NO"
        bare, figures = (f"{found[name]:.2f}" for name in ("bare_seconds", "figure_seconds"))
        cells = [self.model, str(self.n), str(self.batch), bare, *written, figures, same]
        return f"| {' | '.join(cells)} |"


def compare(name: str, n: int, batch: int, repeats: int) -> dict[str, Any]:
    """Times a bare loop, a search and a search with a folder in turn; checks that they draw the same."""
    pipe, call = MODELS[name]()
    return compared(name, pipe, call, n, batch, repeats).as_json()


def compared(name: str, pipe: Any, call: dict[str, Any], n: int, batch: int, repeats: int) -> Comparison:
    """`compare` of a model that is loaded."""
    found = Comparison(name, n, batch)
    bare_loop(pipe, call, batch, batch), toolkit(pipe, call, batch, batch)  # warm-up
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            with _seconds() as bare:
                expected = bare_loop(pipe, call, n, batch)
            with _seconds() as plain:
                drawn = toolkit(pipe, call, n, batch)
            with _seconds() as kept:
                stored = toolkit(pipe, call, n, batch, Path(folder) / "search")
            with _seconds() as with_figures:
                write_result(stored)
            with _seconds() as without:
                write_result(stored, figures=False)
            for result in (drawn, stored):
                pairs = zip(expected, images_of(result), strict=True)
                found.identical &= all(np.array_equal(a, b) for a, b in pairs)
        found.bare.append(bare[0])
        found.ratios.append(plain[0] / bare[0])
        found.folder_ratios.append(kept[0] / bare[0])
        found.figures.append(with_figures[0] - without[0])
    return found


def segment(name: str, repeats: int) -> dict[str, Any]:
    """The cost of driving a pipeline by a segment for each step, of one particle.

    For comparison, the set-up of the pipeline's own call, which each segment runs through: checks, texts,
    latents. Both are differences between the least of several processor times, taken in turn; the part of a
    segment outside the own call is measured by itself.
    """
    pipe, call = MODELS[name]()
    pipe.set_progress_bar_config(disable=True)
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call))
    start, steps = sampler.init(Condition(PROMPT), [0], seed=0), sampler.num_steps

    def own(count: int) -> None:
        arguments = {**call, "num_inference_steps": count}
        pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(0), output_type="latent", **arguments)

    def driven(at_once: int) -> None:
        state = start
        while state.step < steps:
            state = sampler.advance(state, at_once)

    works: dict[str, Callable[[], None]] = {
        "one step": lambda: own(1),
        "own call": lambda: own(steps),
        "whole": lambda: driven(steps),
        "stepwise": lambda: driven(1),
    }
    least = dict.fromkeys(works, math.inf)
    for _ in range(repeats + 1):
        for kind, work in works.items():
            before = time.process_time()
            work()
            least[kind] = min(least[kind], time.process_time() - before)
    step = (least["own call"] - least["one step"]) / (steps - 1)
    outside = math.inf
    with _timed_calls(pipe) as inside:
        for _ in range(repeats + 1):
            inside[0], before = 0.0, time.process_time()
            driven(1)
            outside = min(outside, time.process_time() - before - inside[0])
    return {
        "model": name,
        "step_ms": round(1000 * step, 2),
        "setup_ms": round(1000 * (least["one step"] - step), 2),
        "segment_ms": round(1000 * (least["stepwise"] - least["whole"]) / (steps - 1), 2),
        "outside_ms": round(1000 * outside / steps, 2),
    }


@contextmanager
def _timed_calls(pipe: Any) -> Iterator[list[float]]:
    """The processor time that passes in a pipeline's own calls."""
    kind, inside = type(pipe), [0.0]

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = time.process_time()
        try:
            return kind.__call__(self, *args, **kwargs)
        finally:
            inside[0] += time.process_time() - before

    object.__setattr__(pipe, "__class__", type(kind.__name__, (kind,), {"__call__": timed}))
    try:
        yield inside
    finally:
        object.__setattr__(pipe, "__class__", kind)


@contextmanager
def _seconds() -> Iterator[list[float]]:
    took = [0.0]
    start = time.perf_counter()
    yield took
    took[0] = time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[16], help="samples")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="samples at once")
    parser.add_argument("--repeats", type=int, default=7, help="of 16 samples; of more, as many fewer")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--segments", action="store_true", help="measure the cost of a segment instead")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args(arguments)
    rows = []
    if options.segments:
        print(
            "| model | a step, ms | set-up of the own call, ms | a segment, ms | outside the own call, ms |"
        )
        print("|---|--:|--:|--:|--:|")
        for name in options.models:
            rows.append(segment(name, options.repeats))
            times = (rows[-1][key] for key in ("step_ms", "setup_ms", "segment_ms", "outside_ms"))
            print(f"| {name} | {' | '.join(f'{value:.2f}' for value in times)} |")
    else:
        print("| model | samples | batch | bare loop, s | without a folder / bare | with one / bare ", end="")
        print("| figures in it, s | same images |\n|---|--:|--:|--:|--:|--:|--:|---|")
        for name in options.models:
            pipe, call = MODELS[name]()
            for n, batch in product(options.n, options.batch):
                repeats = min(options.repeats, max(1, round(options.repeats * 16 / n)))
                found = compared(name, pipe, call, n, batch, repeats)
                rows.append(found.as_json())
                print(found.row(), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
