"""Distances between sets of images: FID, KID and Inception Score, computed by torchmetrics.

The features are those of the Inception network that FID is defined by (Heusel et al. 2017): the 2015 network
with 1008 classes, in the port of torch-fidelity, on images resized as TensorFlow 1 did.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import open_media
from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel, UnusableSample, as_image
from tts_vision.verifiers._weights import find_file, read_state

WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
FEATURES, LOGITS = 2048, 1008
SPLITS = 10
NEEDED = "needs torchmetrics and torch-fidelity but {error}; pip install 'tts-vision[eval]'."
_AT_ONCE = 512


@dataclass(frozen=True)
class Embedded:
    """A set of images as Inception sees them.

    Attributes:
        features: ``(N, 2048)`` float32, pooled.
        logits: ``(N, 1008)`` float32, without the bias of the last layer.
    """

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: Sequence[int]) -> Embedded:
        """These rows, in this order, repeats allowed."""
        return Embedded(self.features[list(rows)], self.logits[list(rows)])


@dataclass(frozen=True)
class Reference:
    """The set of images that others are compared with.

    Attributes:
        mean: ``(2048,)`` float64.
        covariance: ``(2048, 2048)`` float64.
        features: ``(N, 2048)``; None where only the statistics are known, which KID cannot do with.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None = None


class FidInception(LazyModel):
    """The Inception network of FID; loads on first use.

    Args:
        weights: The published file of torch-fidelity, or its address.
        owner: Name of the plugin, for messages.
        batch_size: Images computed at once.
    """

    def __init__(
        self, weights: str = WEIGHTS, *, owner: str, device: str | None = None, batch_size: int = 32
    ) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.weights, self.owner = weights, owner
        self._model: Any = None

    def _load(self) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ConfigError(f"{self.owner} {NEEDED.format(error=error)}") from error
        state = read_state(find_file(self.weights, WEIGHTS.rsplit("/", 1)[-1], self.owner), self.owner)
        with tempfile.TemporaryDirectory() as folder:
            # the constructor would unpickle the user's file; it gets one of nothing but tensors
            safe = Path(folder) / "weights.pth"
            torch.save(state, safe)
            try:
                model = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], str(safe)
                )
            except RuntimeError as error:
                raise VerifierError(
                    f"The weights of {self.owner!r} must be those of FID's Inception but {self.weights!r} "
                    f"does not fit ({str(error).splitlines()[0]}); give torch-fidelity's file, {WEIGHTS}."
                ) from error
        self._model = model.to(self.device)

    def embed(self, images: Sequence[Image.Image]) -> Embedded:
        """The features of RGB images of any size.

        Raises:
            ConfigError: If torch-fidelity is not installed.
            VerifierError: If the weights cannot be loaded.
        """
        self.load()

        def work(start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
            return self._batch(list(images[start:stop]))

        rows = [row for part in in_halves(len(images), self.batch_size, work) for row in part]
        if not rows:
            return Embedded(torch.empty(0, FEATURES), torch.empty(0, LOGITS))
        return Embedded(torch.stack([f for f, _ in rows]), torch.stack([g for _, g in rows]))

    @torch.no_grad()
    def _batch(self, images: list[Image.Image]) -> list[tuple[Tensor, Tensor]]:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.size, []).append(i)
        for rows in by_size.values():
            pixels = np.stack([np.asarray(images[i]) for i in rows]).transpose(0, 3, 1, 2)
            features, logits = self._model(torch.from_numpy(pixels.copy()).to(self.device))
            found.update(zip(rows, zip(features.float().cpu(), logits.float().cpu()), strict=True))
        return [found[i] for i in range(len(images))]


def read_reference(path: Path, network: FidInception) -> Reference:
    """The reference set of a folder of images or of a file of statistics.

    Args:
        path: A folder, searched with its subfolders; or an ``.npz`` with ``mu`` and ``sigma``, as pytorch-fid
            and ADM write them, or with images ``arr_0``, ``(N, H, W, 3)`` uint8. Nothing in it is run.
        network: Embeds the images.

    Raises:
        ConfigError: If it is neither, has fewer than two images, or one that cannot be read.
    """
    if path.is_dir():
        return _of_images(_images_in(path), path, network)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            if {"mu", "sigma"} <= names:
                return _of_statistics(file["mu"], file["sigma"], path)
            images = file["arr_0"] if "arr_0" in names else None
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise ConfigError(
            f"reference must be a folder of images or an .npz file but {str(path)!r} cannot be read "
            f"({error}); check the path."
        ) from error
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ConfigError(
            "A file of references must have mu and sigma, or images arr_0 of (N, H, W, 3) uint8, but "
            f"{str(path)!r} has {', '.join(sorted(names)) or 'nothing'}; give such a file."
        )
    return _of_images((Image.fromarray(image) for image in images), path, network)


def frechet_distance(embedded: Embedded, reference: Reference) -> float:
    """FID (Heusel et al. 2017), lower is better; NaN for fewer than two images.

    With fewer images than features (2048) the covariance is singular and the distance too large.
    """
    if len(embedded) < 2:
        return float("nan")
    metrics = _torchmetrics()
    metric = metrics.fid.FrechetInceptionDistance(feature=_Given(embedded.features.shape[1]))
    metric.update(embedded.features.double(), real=False)
    # two samples with these statistics; torchmetrics takes sums
    metric.real_features_num_samples += 2
    metric.real_features_sum += 2 * reference.mean
    metric.real_features_cov_sum += reference.covariance + 2 * torch.outer(reference.mean, reference.mean)
    return float(metric.compute())


def kernel_distance(
    embedded: Embedded, reference: Reference, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> float:
    """KID (Binkowski et al. 2018), lower is better: the mean over random subsets.

    Args:
        embedded: The images.
        reference: Must have features.
        subsets: How many.
        size: Images of each.
        seed: Of the choice of subsets.

    Returns:
        NaN where either set is smaller than a subset, or only statistics of the reference are known.
    """
    features = reference.features
    if features is None or min(len(features), len(embedded)) < size:
        return float("nan")
    metrics = _torchmetrics()
    with _seeded(seed):
        given = _Given(features.shape[1])
        metric = metrics.kid.KernelInceptionDistance(feature=given, subsets=subsets, subset_size=size)
        metric.update(features, real=True)
        metric.update(embedded.features, real=False)
        return float(metric.compute()[0])


def inception_score(embedded: Embedded, *, splits: int = SPLITS, seed: int = 0) -> float:
    """Inception Score (Salimans et al. 2016), higher is better: the mean over random splits.

    Args:
        embedded: The images.
        splits: Parts that the images are divided into.
        seed: Of the order of the images.

    Returns:
        NaN for fewer images than splits.
    """
    if len(embedded) < splits:
        return float("nan")
    metrics = _torchmetrics()
    with _seeded(seed):
        metric = metrics.inception.InceptionScore(feature=_Given(embedded.logits.shape[1]), splits=splits)
        metric.update(embedded.logits)
        return float(metric.compute()[0])


class _Given(torch.nn.Module):
    """In the place of a network, for features that are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torchmetrics() -> Any:
    try:
        import torchmetrics.image
        import torchmetrics.image.fid
        import torchmetrics.image.inception
        import torchmetrics.image.kid
    except ImportError as error:
        raise ConfigError(f"FID, KID and Inception Score {NEEDED.format(error=error)}") from error
    return torchmetrics.image


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws of torch's global generator come from `seed` inside; it is as it was afterwards."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that features take memory
        torch.manual_seed(seed)
        yield


def _images_in(folder: Path) -> Iterator[Image.Image]:
    """The images of a folder and its subfolders, in the order of their names."""
    endings = Image.registered_extensions()
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in endings or not file.is_file():
            continue
        try:
            yield as_image(open_media(file))
        except (OSError, UnusableSample) as error:
            raise ConfigError(
                f"Every image of a reference must be readable but {str(file)!r} is not ({error}); remove it "
                "or get it again."
            ) from error


def _of_images(images: Iterator[Image.Image], path: Path, network: FidInception) -> Reference:
    parts: list[Tensor] = []
    batch: list[Image.Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == _AT_ONCE:
            parts.append(network.embed(batch).features)
            batch = []
    features = torch.cat([*parts, network.embed(batch).features])
    if len(features) < 2:
        raise ConfigError(
            f"A reference must have at least two images but {str(path)!r} has {len(features)}; check "
            "the path."
        )
    exact = features.double()
    return Reference(exact.mean(0), torch.cov(exact.T), features)


def _of_statistics(mean: np.ndarray, covariance: np.ndarray, path: Path) -> Reference:
    if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
        raise ConfigError(
            f"mu and sigma of a reference must be ({FEATURES},) and ({FEATURES}, {FEATURES}) but those of "
            f"{str(path)!r} are {mean.shape} and {covariance.shape}; give the statistics of FID's Inception."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ConfigError(
            f"mu and sigma of {str(path)!r} must be finite numbers but are not; make them again."
        )
    return Reference(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
