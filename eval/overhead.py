"""What the toolkit costs: best-of-n through it against a bare loop over the pipeline.

``python -m tts_vision.eval.overhead`` draws the same images from the same seeds in batches of the same size
both ways, in turn, and prints the ratio of the wall-clock times; the images must be identical.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import tts_vision
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


def toolkit(pipe: Any, call: dict[str, Any], n: int, batch: int) -> list[np.ndarray]:
    """The same by a search, with a verifier that costs nothing."""
    result = tts_vision.search(
        pipe,
        PROMPT,
        algorithm="best_of_n",
        algorithm_params={"n": n},
        budget=f"{n}x",
        seed=0,
        max_batch=batch,
        pipeline_kwargs=call,
        verifier=_no_opinion,
    )
    by_uid = sorted(result.population, key=lambda candidate: candidate.uid)
    return [np.asarray(candidate.load()) for candidate in by_uid]


def _no_opinion(media: Sequence[Any], prompts: Sequence[str]) -> list[float]:
    return [0.0] * len(media)


def compare(name: str, n: int, batch: int, repeats: int) -> dict[str, Any]:
    """Times both in turn and checks that they draw the same."""
    pipe, call = MODELS[name]()
    expected, drawn = bare_loop(pipe, call, n, batch), toolkit(pipe, call, n, batch)  # warm-up
    identical = all(np.array_equal(a, b) for a, b in zip(expected, drawn, strict=True))
    ratios, bare = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        bare_loop(pipe, call, n, batch)
        middle = time.perf_counter()
        toolkit(pipe, call, n, batch)
        bare.append(middle - start)
        ratios.append((time.perf_counter() - middle) / bare[-1])
    return {
        "model": name,
        "n": n,
        "batch": batch,
        "repeats": repeats,
        "bare_seconds": round(statistics.median(bare), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "identical": identical,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args(arguments)
    rows = [compare(name, options.n, options.batch, options.repeats) for name in options.models]
    print("| model | bare loop, s | toolkit / bare, median [min, max] | same images |")
    print("|---|--:|--:|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['bare_seconds']:.2f} | {row['ratio']:.3f} [{row['ratio_low']:.3f}, "
            f"{row['ratio_high']:.3f}] | {'yes' if row['identical'] else 'NO'} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
