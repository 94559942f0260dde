"""Measures the playground on its evaluation prompts: `python -m tts_vision.pipelines.playground.measure`.

For every prompt n images are drawn from fixed seeds, by the flow or with `--model` by another bundled model.
Plain accuracy is that of single images, averaged over the n; best-of-n takes the image that a verifier likes
most, the exact checker or the small CLIP. Of `playground-video` clips are drawn for its own prompts, and the
verifiers are the exact motion checker and the motion judge.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CogView4Pipeline

from tts_vision.intervals import mean_of
from tts_vision.pipelines.bundled import (
    load_playground_discrete_flow,
    load_playground_masked,
    load_playground_var,
    load_playground_video,
)
from tts_vision.pipelines.playground import DEFAULTS, load_pipeline, motion, weights_path, world
from tts_vision.pipelines.playground.checker import evaluate
from tts_vision.types import Invalid, Prompt, Video

TOKEN_MODELS: dict[str, Callable[[], Any]] = {
    "playground-var": load_playground_var,
    "playground-masked": load_playground_masked,
    "playground-discrete-flow": load_playground_discrete_flow,
}
VIDEO = "playground-video"


@torch.no_grad()
def draw(
    pipe: CogView4Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    batch_size: int = 64,
    mixed: bool = False,
) -> np.ndarray:
    """Draws one image for each prompt and seed.

    Args:
        pipe: The pipeline.
        prompts: n prompts.
        seeds: n seeds of the initial noise, each as a plain call with that generator would use it.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch_size: Images drawn at once.
        mixed: Compute in bfloat16 where that is safe; faster, not bit-equal to plain calls.

    Returns:
        RGB images, uint8 of shape `(n, 64, 64, 3)`.
    """
    pipe.set_progress_bar_config(disable=True)
    drawn = []
    for start in range(0, len(prompts), batch_size):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + batch_size]]
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=mixed):
            images = pipe(
                list(prompts[start : start + batch_size]),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="np",
            ).images
        drawn.append(np.rint(np.asarray(images) * 255).astype(np.uint8))
    return np.concatenate(drawn)


@torch.no_grad()
def clip_scores(images: np.ndarray, texts: Sequence[str], folder: Path, batch_size: int = 128) -> np.ndarray:
    """Cosine of each image with its text, by the playground's CLIP.

    Args:
        images: RGB uint8 of shape `(n, 64, 64, 3)`.
        texts: n texts.
        folder: The CLIP model's folder.
        batch_size: Pairs at once.

    Returns:
        Cosines, shape `(n,)`.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    scores = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        words = tokenizer(list(texts[part]), padding="max_length", return_tensors="pt")
        pixels = processor(list(images[part]), return_tensors="pt").pixel_values
        output = model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels)
        scores.append((output.image_embeds * output.text_embeds).sum(-1))
    return torch.cat(scores).numpy()


def draw_tokens(
    pipe: Callable[..., Any], prompts: Sequence[str], n: int, seed: int, call: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Draws n images for each prompt by a bundled model of tokens.

    Args:
        pipe: The pipeline.
        prompts: The prompts.
        n: Images a prompt.
        seed: Image k of prompt i is that of particle k of a search with seed `seed + i`.
        call: Settings in the place of the model's own.

    Returns:
        RGB images, uint8 of shape `(p * n, 64, 64, 3)`.
    """
    drawn = [
        image
        for i, prompt in enumerate(prompts)
        for image in pipe(prompt, seed=seed + i, n=n, **(call or {}))
    ]
    return np.stack([np.asarray(image) for image in drawn])


def judge(
    images: np.ndarray, records: Sequence[dict[str, Any]], n: int, clip: Path | None
) -> dict[str, np.ndarray]:
    """Judges n images of each prompt.

    Args:
        images: RGB images, uint8 of shape `(p * n, 64, 64, 3)`.
        records: p prompts in GenEval's schema.
        n: Images a prompt.
        clip: Folder of the CLIP model, or None to leave it out.

    Returns:
        Accuracy of each prompt by method, each of shape `(p,)`.
    """
    verdicts = [evaluate(images[j], records[j // n]) for j in range(len(images))]
    right = np.array([v.correct for v in verdicts]).reshape(-1, n)
    result = {"plain": right.mean(1), "oracle": right.any(1).astype(float)}
    if clip is not None:
        prompts = [record["prompt"] for record in records for _ in range(n)]
        best = clip_scores(images, prompts, clip).reshape(-1, n).argmax(1)
        result["clip"] = right[np.arange(len(right)), best].astype(float)
    return result


@torch.no_grad()
def draw_clips(pipe: Any, prompts: Sequence[str], n: int, seed: int, call: Mapping[str, Any]) -> list[Video]:
    """Draws n clips for each prompt by the bundled video model.

    Args:
        pipe: The pipeline.
        prompts: The prompts.
        n: Clips a prompt.
        seed: Clip k of prompt i is that of particle k of a search with seed `seed + i`.
        call: Settings in the place of the model's own.
    """
    from tts_vision.config import SamplerOptions
    from tts_vision.pipelines.chunk_sampler import ChunkSampler

    sampler = ChunkSampler(pipe, options=SamplerOptions(pipeline_kwargs=dict(call)))
    clips: list[Video] = []
    for i, prompt in enumerate(prompts):
        state = sampler.init(sampler.condition_of(Prompt(prompt)), range(n), seed=seed + i)
        decoded = sampler.decode(sampler.advance(state, sampler.num_steps))
        media = [clip.media if isinstance(clip, Invalid) else clip for clip in decoded]
        clips += [clip for clip in media if isinstance(clip, Video)]
    return clips


def judge_clips(
    clips: Sequence[Video], records: Sequence[dict[str, Any]], n: int, with_judge: bool
) -> dict[str, np.ndarray]:
    """Judges n clips of each prompt by the exact motion checker.

    Args:
        clips: The clips, those of one prompt after the other.
        records: p prompts, records of `motion.metadata`.
        n: Clips a prompt.
        with_judge: Whether the motion judge chooses too.

    Returns:
        Accuracy of each prompt by method, each of shape `(p,)`; "first chunk" is that of single clips up to
        the end of it.
    """
    from tts_vision.pipelines.playground import motion_checker

    specs = [motion.spec_of(record) for record in records for _ in range(n)]
    verdicts = [motion_checker.evaluate(clip.frames.numpy(), spec) for clip, spec in zip(clips, specs)]
    right = np.array([v.correct for v in verdicts]).reshape(-1, n)
    first = np.array([v.holds_until(0) for v in verdicts]).reshape(-1, n)
    result = {"plain": right.mean(1), "first chunk": first.mean(1), "oracle": right.any(1).astype(float)}
    if with_judge:
        from tts_vision.verifiers.playground_motion_judge import PlaygroundMotionJudge

        prompts = [Prompt(record["prompt"]) for record in records for _ in range(n)]
        scores = [score.value for score in PlaygroundMotionJudge().score(list(clips), prompts)]
        best = np.array(scores).reshape(-1, n).argmax(1)
        result["judge"] = right[np.arange(len(right)), best].astype(float)
    return result


def table(
    records: Sequence[dict[str, Any]], result: dict[str, np.ndarray], tasks: Sequence[str] = world.TASKS
) -> str:
    """A Markdown table of accuracies in percent with 95 % intervals, by task form.

    Args:
        records: Prompts with a `tag`.
        result: Accuracies as of `judge`.
        tasks: The tags.

    Returns:
        The table.
    """
    tags = np.array([record["tag"] for record in records])
    lines = ["| task | " + " | ".join(result) + " |", "|---" * (len(result) + 1) + "|"]
    for task in (*tasks, "all"):
        rows = np.ones(len(tags), bool) if task == "all" else tags == task
        if not rows.any():
            continue
        cells = []
        for values in result.values():
            cells.append(mean_of(values[rows]).percent)
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the measurement and prints its table.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=16, help="images or clips for each prompt")
    parser.add_argument("--model", choices=("playground", *TOKEN_MODELS, VIDEO), default="playground")
    parser.add_argument("--steps", type=int, help="by default the model's own; playground-var has none")
    parser.add_argument("--guidance", type=float, help="by default the model's own")
    parser.add_argument("--temperature", type=float, help="of a model of tokens; by default its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="use every k-th prompt only")
    parser.add_argument("--mixed", action="store_true", help="compute in bfloat16: faster, not bit-equal")
    parser.add_argument("--no-clip", action="store_true", help="leave out the verifier that errs")
    parser.add_argument(
        "--sheet",
        type=Path,
        help="write a contact sheet of first images, or of four frames of first clips, to this PNG",
    )
    parser.add_argument("--json", type=Path, help="write the accuracies of all prompts to this file")
    options = parser.parse_args(arguments)
    of_video = options.model == VIDEO
    records = (motion.load_prompts() if of_video else world.load_prompts())[:: options.every]
    prompts, n, seed = [record["prompt"] for record in records], options.n, options.seed
    started = time.monotonic()
    if options.model == "playground":
        guidance = DEFAULTS["guidance_scale"] if options.guidance is None else options.guidance
        steps = int(DEFAULTS["num_inference_steps"]) if options.steps is None else options.steps
        how = f"{steps} steps, guidance {guidance}"
        seeds = [seed + 1000 * i + k for i in range(len(records)) for k in range(n)]
        each = [prompt for prompt in prompts for _ in range(n)]
        images = draw(load_pipeline(), each, seeds, steps, guidance, mixed=options.mixed)
    else:
        temperature = "tau" if options.model == "playground-var" else "temperature"
        given = {
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
            temperature: options.temperature,
        }
        call = {key: value for key, value in given.items() if value is not None}
        how = ", ".join(f"{key} {value}" for key, value in call.items()) or "its own settings"
        if of_video:
            clips = draw_clips(load_playground_video(), prompts, n, seed, call)
            images = np.stack([np.concatenate([*clip.frames[:: motion.CHUNK].numpy()], 1) for clip in clips])
        else:
            images = draw_tokens(TOKEN_MODELS[options.model](), prompts, n, seed, call)
    if of_video:
        result = judge_clips(clips, records, n, not options.no_clip)
    else:
        result = judge(images, records, n, None if options.no_clip else weights_path("clip"))
    print(
        f"{len(records)} prompts, {n} samples each, {how}, seed {seed}, {time.monotonic() - started:.0f} s\n"
    )
    print(table(records, result, motion.FORMS if of_video else world.TASKS))
    if options.sheet:
        from PIL import Image

        first = images[::n]
        columns = 3 if of_video else 10
        first = first[: len(first) // columns * columns]
        rows, width = len(first) // columns, columns * first.shape[2]
        grid = first.reshape(rows, columns, *first.shape[1:]).transpose(0, 2, 1, 3, 4)
        Image.fromarray(grid.reshape(rows * 64, width, 3)).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps({key: values.tolist() for key, values in result.items()}))


if __name__ == "__main__":
    main()
