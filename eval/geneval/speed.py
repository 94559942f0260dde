"""Speed of GenEval's detector and scorer in batches, against one image at a time.

``python -m tts_vision.eval.geneval.speed`` judges random images in three ways, by a Mask2Former and a CLIP of
reduced size with random weights on the CPU, checks that all agree, and prints the times as a Markdown table:
GenEval's loop (an image at a time, all of its masks in full size, a crop at a time), the toolkit's own code
an image at a time, and in batches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tts_vision.eval.geneval.prompts import CLASSES, published_records
from tts_vision.verifiers._detections import Detection, Findings, check, strongest
from tts_vision.verifiers._mask2former import BEST, Mask2Former, mask2former_pixels, resized
from tts_vision.verifiers._mmdet import COCO
from tts_vision.verifiers._object_judge import ObjectJudge
from tts_vision.verifiers._predicates import Demands, from_record

THRESHOLD = 0.4
"""Leaves several objects in an image, of those that random weights see."""
CLOSE = 1e-4
"""Largest difference of two confidences of one object; sums of floats depend on their order."""


@dataclass(frozen=True)
class Speed:
    """Seconds of the processor for the same images.

    Attributes:
        side: Of the images, in pixels.
        loop: Seconds for GenEval's loop.
        alone: Seconds for the toolkit's code, one image at a time.
        batched: Seconds in batches.
        objects: Objects that were found in all.
    """

    side: int
    loop: float
    alone: float
    batched: float
    objects: int


def measure(folder: Path, side: int, images: int, batch_size: int) -> Speed:
    """Judges `images` random images of `side` pixels in the three ways.

    Args:
        folder: Holds the models of `save_reduced`.
        side: Of the images.
        images: How many.
        batch_size: Of the batches.

    Raises:
        RuntimeError: If they find other objects, faults or confidences.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    samples = [Image.fromarray(each) for each in pixels]
    demands = _demands(images)
    one, many = (_judge(folder, side, size) for size in (1, batch_size))
    single, alone = _timed(
        lambda: [f for i, d in zip(samples, demands) for f in one.findings([i], [d], [False], also=CLASSES)],
        lambda: one.findings(samples[:1], demands[:1], [False], also=CLASSES),
    )
    whole, batched = _timed(
        lambda: many.findings(samples, demands, [False] * images, also=CLASSES),
        lambda: many.findings(samples[:1], demands[:1], [False], also=CLASSES),
    )
    slow, loop = _timed(
        lambda: [recipe(one, image, each) for image, each in zip(samples, demands)],
        lambda: recipe(one, samples[0], demands[0]),
    )
    _check_equal(single, whole)
    _check_equal(slow, whole)
    return Speed(side, loop, alone, batched, sum(len(f.detections) for f in whole if isinstance(f, Findings)))


def recipe(judge: ObjectJudge, image: Image.Image, demands: Demands) -> Findings:
    """The findings in an image by GenEval's steps, one after the other, without a short cut.

    All masks are resized to the model's input and to the image; the hundred best pairs of query and class
    each get a confidence and a box; CLIP sees one crop at a time.
    """
    detector, namer = judge.detector, judge.colours
    assert isinstance(detector, Mask2Former) and namer is not None
    size = (image.height, image.width)
    valid = resized(*size, detector.size)
    pixels = mask2former_pixels(image, valid)
    output = detector._model(pixel_values=pixels)
    logits = F.interpolate(output.masks_queries_logits, pixels.shape[-2:], mode="bilinear")
    masks = F.interpolate(logits[..., : valid[0], : valid[1]], size, mode="bilinear")[0]
    probabilities = output.class_queries_logits[0].softmax(-1)[:, :-1]
    best = probabilities.flatten().topk(BEST)
    queries, classes = best.indices // len(COCO), best.indices % len(COCO)
    chosen = masks[queries]
    inside = (chosen > 0).float()
    sure = (chosen.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    found = []
    for score, number, mask in zip((best.values * sure).tolist(), classes.tolist(), inside.bool()):
        ys, xs = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        box = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1) if xs else (0, 0, 0, 0)
        found.append(Detection(CLASSES[number], score, box, mask))
    kept = strongest([d for d in found if d.score > judge.cutoffs.others], max_objects=judge.max_objects)
    return Findings(check(demands, kept, lambda d, group: namer.name(image, d, group)), kept)


def save_reduced(folder: Path) -> None:
    """Saves a Mask2Former for COCO's classes and a CLIP, both small and with random weights."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
    )

    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(
                backbone_config={**swin, "out_features": [f"stage{i}" for i in range(1, 5)]},
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                encoder_layers=1,
                decoder_layers=3,
                num_attention_heads=2,
                dim_feedforward=32,
                num_queries=20,
                id2label=dict(enumerate(COCO)),
                label2id={name: number for number, name in enumerate(COCO)},
            )
        )
        # so that queries differ, and are of some class rather than of none
        detector.model.transformer_module.queries_features.weight.data.normal_()
        detector.class_predictor.weight.data.normal_(std=1.0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        letters = [chr(code) for code in range(33, 127)]
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
        clip = CLIPModel(
            CLIPConfig(
                text_config={**sizes, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1},
                vision_config={**sizes, "image_size": 32, "patch_size": 8},
                projection_dim=16,
            )
        )
    tokenizer: Any = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 77
    detector.save_pretrained(folder / "detector")
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")


def table(speeds: Sequence[Speed], images: int, batch_size: int) -> str:
    """Measurements as a Markdown table."""
    lines = [
        "| side of the images | GenEval's loop, ms | one at a time, ms | batches of "
        f"{batch_size}, ms | faster than the loop by | than one at a time by | objects |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in speeds:
        times = [f"{1000 * seconds / images:.1f}" for seconds in (each.loop, each.alone, each.batched)]
        gains = [f"{seconds / each.batched:.1f}x" for seconds in (each.loop, each.alone)]
        lines.append(f"| {each.side} | {' | '.join([*times, *gains])} | {each.objects} |")
    return "\n".join(lines)


def _judge(folder: Path, side: int, batch_size: int) -> ObjectJudge:
    judge = ObjectJudge(
        "mask2former",
        checkpoint=str(folder / "detector"),
        colours=str(folder / "clip"),
        threshold=THRESHOLD,
        size=side,
        owner="geneval",
        device="cpu",
        batch_size=batch_size,
    )
    judge.load()
    return judge


def _demands(n: int) -> list[Demands]:
    """Those of published prompts, of all tasks in turn."""
    records = published_records()
    found = [from_record(records[(97 * i) % len(records)]) for i in range(n)]
    return [each for each in found if each is not None]


def _timed(
    work: Callable[[], Sequence[Findings | str]], first: Callable[[], Any]
) -> tuple[Sequence[Findings | str], float]:
    """What the work gives, and its seconds on the processor, after a first call that is not counted."""
    with torch.no_grad():
        first()
        start = time.process_time()
        found = work()
        return found, time.process_time() - start


def _check_equal(single: Sequence[Findings | str], whole: Sequence[Findings | str]) -> None:
    for i, (a, b) in enumerate(zip(single, whole, strict=True)):
        if isinstance(a, str) or isinstance(b, str):
            raise RuntimeError(f"Image {i} could not be judged: {a if isinstance(a, str) else b}")
        # of each label in order; between labels, equal confidences may change places
        both = [sorted(each.detections, key=lambda d: d.label) for each in (a, b)]
        objects = [[(d.label, d.box) for d in each] for each in both]
        scores = [[d.score for d in each] for each in both]
        if (
            objects[0] != objects[1]
            or a.faults != b.faults
            or not np.allclose(scores[0], scores[1], atol=CLOSE)
        ):
            raise RuntimeError(f"Batches must find what single images give, but image {i} differs.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[64, 128, 256], help="of the images, in pixels"
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        save_reduced(Path(name))
        speeds = [measure(Path(name), side, options.images, options.batch_size) for side in options.sides]
    print(table(speeds, options.images, options.batch_size))


if __name__ == "__main__":
    main()
