"""Distances of a set of images to a reference set, as class-conditional models are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.distribution import (
    FEATURES,
    WEIGHTS,
    Embedded,
    FidInception,
    Reference,
    frechet_distance,
    inception_score,
    kernel_distance,
    read_reference,
)
from tts_vision.eval.evaluator import Evaluator, Item, Judged, Sample, Verdict, weighted_mean
from tts_vision.eval.evaluators._by_verifier import absolute_verifier
from tts_vision.eval.evaluators._data import digest_of
from tts_vision.eval.evaluators._images import images_of
from tts_vision.imagenet import CLASSES
from tts_vision.prompt_files import read_records
from tts_vision.registry import register
from tts_vision.types import Prompt

JUDGED = "judged"


@register(
    "evaluator",
    "distribution",
    paper=(
        "FID (Heusel et al. 2017); KID (Binkowski et al. 2018); Inception Score (Salimans et al. 2016); "
        "CLIPScore (Hessel et al. 2021); protocol of Ma et al. 2025, arXiv:2501.09732"
    ),
    notes={"licence": "Apache-2.0 (network and weights)", "weights": WEIGHTS},
)
class Distribution(Evaluator):
    """FID, KID and Inception Score of all samples together, against a reference set of images.

    Without a prompt file, the prompts are the 1000 classes of ImageNet. For FID and KID lower is better, for
    the Inception Score and CLIPScore higher. They are figures of a set, so single samples have no verdict
    and there are no intervals. FID compares only at equal numbers of images, 50,000 as a rule; the number is
    among the figures.

    Args:
        reference: A folder of images, or an ``.npz`` with ``mu`` and ``sigma`` (as of ADM and pytorch-fid) or
            images ``arr_0``. Without one there is neither FID nor KID; statistics alone give no KID.
        data: A file of prompts, in place of the classes of ImageNet.
        weights: The Inception network of FID, in the file of torch-fidelity, or its address.
        clip: The verifier that gives CLIPScore, such as ``clip_score``, with ``;`` between its parameters;
            none by default.
        kid_subsets: Random subsets that KID is a mean over.
        kid_size: Images of each subset; KID is missing where there are fewer.
        subset_seed: Of the choice of subsets and splits.
        device: Device of the network; by default the accelerator, if there is one.
        batch_size: Images computed at once.
    """

    name = "distribution"
    metric = "fid"
    samples_per_item = 50
    together = True
    resamples = False

    def __init__(
        self,
        *,
        reference: Path | None = None,
        data: Path | None = None,
        weights: str = WEIGHTS,
        clip: str = "",
        kid_subsets: int = 100,
        kid_size: int = 1000,
        subset_seed: int = 0,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        for name, value, least in (("kid_subsets", kid_subsets, 1), ("kid_size", kid_size, 2)):
            if value < least:
                raise ConfigError(f"{name} must be at least {least} but got {value}; raise it.")
        if reference is not None and not Path(reference).expanduser().exists():
            raise ConfigError(f"reference must exist but {str(reference)!r} does not; check the path.")
        self.reference = None if reference is None else Path(reference).expanduser()
        self.kid_subsets, self.kid_size, self.subset_seed = kid_subsets, kid_size, subset_seed
        self._items = _class_items() if data is None else _prompt_items(data)
        self._network = FidInception(weights, owner=self.name, device=device, batch_size=batch_size)
        self._clip_text = clip.replace(";", ",")
        self._clip = absolute_verifier(self._clip_text, self.name) if clip else None
        self._target: Reference | None = None
        self._embedded: dict[tuple[str, int, int], Embedded] = {}

    @property
    def notes(self) -> list[str]:
        found = [
            "For FID and KID lower is better.",
            "FID falls with the number of images: compare it only at the same number, and with fewer than "
            f"{FEATURES} do not read it as FID at all.",
        ]
        if self.reference is None:
            found.append("There is no reference set, so FID and KID are missing.")
        return found

    @property
    def judge_name(self) -> str:
        known = digest_of(self._items)
        return f"distribution {known} by {self._clip_text or 'no CLIP'} and {self._network.weights}"

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        looked = images_of(samples, self.name)
        images = {i: image for i, image in looked.items() if not isinstance(image, str)}
        self._embed({_key(samples[i]): image for i, image in images.items()})
        clip: dict[int, float] = {}
        if self._clip is not None:
            prompts = [samples[i].item.prompt for i in images]
            scores = self._clip.score(list(images.values()), prompts)
            clip = {i: score.value for i, score in zip(images, scores, strict=True)}
        return [
            Verdict({JUDGED: 1.0, **({"clip_score": clip[i]} if i in clip and clip[i] == clip[i] else {})})
            if i in images
            else Verdict(reason=str(looked[i]))
            for i in range(len(samples))
        ]

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """FID, KID, Inception Score and CLIPScore of the samples, and how many they are.

        Args:
            judged: Samples; those that were judged before are read again.
            weights: ``(N,)`` how often each counts; rounded down to whole numbers.
        """
        there = [(each, int(w)) for each, w in zip(judged, weights) if JUDGED in each.verdict.values]
        embedded = self._rows([each.sample for each, _ in there]) if there else None
        counts = [count for _, count in there]
        rows = np.repeat(np.arange(len(there)), counts).tolist()
        found = {"fid": float("nan"), "kid": float("nan"), "inception_score": float("nan")}
        if embedded is not None and rows:
            chosen = embedded.select(rows)
            found["inception_score"] = inception_score(chosen, seed=self.subset_seed)
            if self.reference is not None:
                target = self._reference()
                found["fid"] = frechet_distance(chosen, target)
                found["kid"] = kernel_distance(
                    chosen, target, subsets=self.kid_subsets, size=self.kid_size, seed=self.subset_seed
                )
        if self._clip is not None:
            values = np.array(
                [each.verdict.values.get("clip_score", np.nan) for each, _ in there], dtype=float
            )
            found["clip_score"] = weighted_mean(values, np.array(counts, dtype=float))
        return {**found, "images": float(len(rows))}

    def _reference(self) -> Reference:
        """The reference set, read when it is first needed."""
        if self._target is None:
            assert self.reference is not None
            self._target = read_reference(self.reference, self._network)
        return self._target

    def _embed(self, images: dict[tuple[str, int, int], Image.Image]) -> None:
        new = [key for key in images if key not in self._embedded]
        found = self._network.embed([images[key] for key in new])
        for row, key in enumerate(new):
            self._embedded[key] = found.select([row])

    def _rows(self, samples: Sequence[Sample]) -> Embedded:
        """The features of samples; of those that were judged in another session, from their files.

        Raises:
            ConfigError: If one cannot be read any more.
        """
        keys = [_key(sample) for sample in samples]
        lost = [i for i, key in enumerate(keys) if key not in self._embedded]
        again = images_of([samples[i] for i in lost], self.name)
        if gone := [reason for reason in again.values() if isinstance(reason, str)]:
            raise ConfigError(f"Judged samples must stay where they are but {gone[0]}; put it back.")
        self._embed({keys[i]: image for i, image in zip(lost, again.values()) if not isinstance(image, str)})
        import torch

        rows = [self._embedded[key] for key in keys]
        return Embedded(torch.cat([r.features for r in rows]), torch.cat([r.logits for r in rows]))


def _key(sample: Sample) -> tuple[str, int, int]:
    """A file as it is now."""
    try:
        state = sample.path.stat()
    except OSError:
        return str(sample.path), 0, 0
    return str(sample.path), state.st_mtime_ns, state.st_size


def _class_items() -> list[Item]:
    """The classes of ImageNet, by torchvision's names."""
    from torchvision.models import Inception_V3_Weights

    names = Inception_V3_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(names) == CLASSES
    return [Item(f"{i:04d}", Prompt(name, {"class_id": i})) for i, name in enumerate(names)]


def _prompt_items(data: Path) -> list[Item]:
    records = read_records(data)
    return [Item(f"{i:05d}", Prompt(record.text, record.metadata)) for i, record in enumerate(records)]
