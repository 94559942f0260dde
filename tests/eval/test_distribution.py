"""FID, KID and Inception Score by hand, references, and the evaluator on random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samples import some_images
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.distribution import (
    Embedded,
    FidInception,
    Reference,
    frechet_distance,
    inception_score,
    kernel_distance,
    read_reference,
)
from tts_vision.eval.evaluator import Judged, Sample, Verdict
from tts_vision.eval.evaluators.distribution import Distribution
from tts_vision.registry import lookup

pytest.importorskip("torchmetrics", reason="pip install 'tts-vision[eval]'")
fidelity = pytest.importorskip(
    "torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'tts-vision[eval]'"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file in the layout of the published one, with random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05.pth"
    published = fidelity.FeatureExtractorInceptionV3
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(published, "load_state_dict", lambda *a, **k: None)
        state = published("inception-v3-compat", ["2048"]).state_dict()
    for name, value in state.items():
        if value.ndim > 1:  # so large that the last layers still see the image
            scale = math.sqrt(2 / value[0].numel())
            state[name] = torch.randn(value.shape, generator=generator) * scale
        elif "running_var" in name or name.endswith("bn.weight"):
            state[name] = torch.ones_like(value)
        elif value.is_floating_point():
            state[name] = torch.zeros_like(value)
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def network(weights: str) -> FidInception:
    return FidInception(weights, owner="distribution", device="cpu", batch_size=3)


WIDE, CLASSES = 24, 16
"""Of sets that are made up; torchmetrics takes 10 s for the roots of a matrix of 2048."""


def drawn(n: int, seed: int, shift: float = 0.0) -> Embedded:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(shift, 1, (n, WIDE))).float()
    return Embedded(features, torch.from_numpy(rng.normal(0, 2, (n, CLASSES))).float())


def reference_of(embedded: Embedded) -> Reference:
    exact = embedded.features.double()
    return Reference(exact.mean(0), torch.cov(exact.T), embedded.features)


def test_fid_of_sets_whose_covariances_are_known() -> None:
    """Two points of each set: covariances of rank one, whose product has one root."""
    a, b = np.zeros((2, WIDE)), np.zeros((2, WIDE))
    a[0, 0], a[1, 0] = 1.0, -1.0  # variance 2 along the first axis
    b[0, 0], b[1, 0], b[:, 1] = 3.0, -3.0, 2.0  # variance 18, mean 2 along the second
    sets = [Embedded(torch.from_numpy(x).float(), torch.zeros(2, CLASSES)) for x in (a, b)]
    expected = 2.0**2 + 2 + 18 - 2 * math.sqrt(2 * 18)
    assert frechet_distance(sets[0], reference_of(sets[1])) == pytest.approx(expected, abs=1e-4)
    assert frechet_distance(sets[1], reference_of(sets[1])) == pytest.approx(0, abs=1e-4)


def test_kid_is_the_unbiased_polynomial_estimate() -> None:
    ours, theirs = drawn(12, 1), drawn(9, 2, shift=0.2)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / WIDE + 1) ** 3

    x, y = (e.features.double().numpy() for e in (ours, theirs))
    n = 9
    found = kernel_distance(ours.select(range(9)), reference_of(theirs), subsets=3, size=n)
    x = x[:9]
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    assert found == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-3)
    assert math.isnan(kernel_distance(ours, reference_of(theirs), size=10))
    statistics = Reference(torch.zeros(WIDE), torch.eye(WIDE))
    assert math.isnan(kernel_distance(ours, statistics, size=2))


def test_inception_score_by_hand() -> None:
    """Certain and all different: as many as classes drawn; all alike: 1."""
    logits = torch.zeros(10, CLASSES)
    logits[range(10), range(10)] = 60.0
    features = torch.zeros(10, WIDE)
    assert inception_score(Embedded(features, logits), splits=1) == pytest.approx(10, rel=1e-3)
    assert inception_score(Embedded(features, torch.zeros(10, CLASSES)), splits=2) == pytest.approx(1)
    assert math.isnan(inception_score(Embedded(features, logits), splits=11))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    ours, theirs = drawn(30, 1), reference_of(drawn(30, 2))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    values = [kernel_distance(ours, theirs, subsets=2, size=5, seed=seed) for seed in (0, 0, 1)]
    scores = [inception_score(ours, splits=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in (values, scores):
        assert a == b != c


def test_embeds_as_the_published_network_does(network: FidInception, weights: str) -> None:
    model = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], weights)
    images = [*some_images(1, (40, 32)), *some_images(1, (50, 50), seed=1)]
    found = network.embed(images)
    for row, image in enumerate(images):
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
        features, logits = model(pixels)
        assert torch.allclose(found.features[row], features[0], atol=1e-4)
        assert torch.allclose(found.logits[row], logits[0], atol=1e-3)
    assert found.features.std(0).mean() > 1e-3  # the random weights tell images apart
    assert len(network.embed([])) == 0


def test_wrong_weights_are_refused(tmp_path: Path, weights: str) -> None:
    state = torch.load(weights, weights_only=True)
    state.pop("fc.weight")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(VerifierError, match="FID's Inception"):
        FidInception(str(tmp_path / "less.pth"), owner="distribution", device="cpu").load()


class Runs:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code of a stranger ran')",))


def test_a_file_of_weights_runs_no_code(tmp_path: Path) -> None:
    torch.save({"fc.weight": Runs()}, tmp_path / "evil.pth")
    with pytest.raises(VerifierError, match="whole safetensors or PyTorch file"):
        FidInception(str(tmp_path / "evil.pth"), owner="distribution", device="cpu").load()


def test_references(tmp_path: Path, network: FidInception) -> None:
    images = some_images(2, (32, 32))
    folder = tmp_path / "reference"
    (folder / "n01440764").mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / "n01440764" / f"{i}.png")
    (folder / "readme.txt").write_text("no image")
    from_folder = read_reference(folder, network)
    np.savez(tmp_path / "batch.npz", arr_0=np.stack([np.asarray(image) for image in images]))
    from_batch = read_reference(tmp_path / "batch.npz", network)
    mean, covariance = from_folder.mean.numpy(), from_folder.covariance.numpy()
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    from_statistics = read_reference(tmp_path / "stats.npz", network)
    for other in (from_batch, from_statistics):
        assert torch.allclose(other.mean, from_folder.mean, atol=1e-5)
        assert torch.allclose(other.covariance, from_folder.covariance, atol=1e-5)
    assert from_folder.covariance.trace() > 0 and from_statistics.features is None
    expected = network.embed(images).features.double()
    assert torch.allclose(from_folder.mean, expected.mean(0), atol=1e-5)


def test_references_that_are_none(tmp_path: Path, network: FidInception) -> None:
    some_images(1)[0].save(tmp_path / "one.png")
    with pytest.raises(ConfigError, match=r"at least two images but .* has 1"):
        read_reference(tmp_path, network)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"readable but .*broken.png"):
        read_reference(tmp_path, network)
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ConfigError, match="must have mu and sigma"):
        read_reference(tmp_path / "other.npz", network)
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ConfigError, match=r"must be \(2048,\)"):
        read_reference(tmp_path / "small.npz", network)
    np.savez(tmp_path / "evil.npz", mu=np.array([Runs()], dtype=object), sigma=np.zeros(1))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_reference(tmp_path / "evil.npz", network)
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_reference(tmp_path / "text.npz", network)


class Colours:
    """In the place of Inception: colours at some places of an image."""

    weights = "colours"

    def embed(self, images: Sequence[Image.Image]) -> Embedded:
        small = [np.asarray(image.resize((3, 2)), dtype=np.float32).ravel() / 255 for image in images]
        features = torch.from_numpy(np.stack(small)) if small else torch.empty(0, 18)
        return Embedded(features, 5 * features)


def evaluator_of(settings: dict[str, Any]) -> Distribution:
    evaluator = Distribution(**settings)
    evaluator._network = Colours()  # type: ignore[assignment]
    return evaluator


def test_the_evaluator(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    for i, image in enumerate(some_images(8, seed=3)):
        image.save(reference / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    settings: dict[str, Any] = {
        "reference": reference,
        "data": tmp_path / "prompts.txt",
        "kid_size": 3,
        "kid_subsets": 2,
        "device": "cpu",
    }
    evaluator = evaluator_of(settings)
    items, images = evaluator.items(), some_images(10)
    samples = []
    for i, image in enumerate(images):
        path = tmp_path / f"{i}.png"
        image.save(path)
        samples.append(Sample(items[i % 2], i // 2, path))
    broken = Sample(items[0], 99, tmp_path / "missing.png")
    verdicts = evaluator.judge([*samples, broken])
    assert [bool(v.values) for v in verdicts] == [True] * 10 + [False] and verdicts[-1].reason
    judged = [Judged(s, v) for s, v in zip([*samples, broken], verdicts)]
    found = evaluator.summarise(judged, np.ones(11))
    ours, target = Colours().embed(images), reference_of(Colours().embed(some_images(8, seed=3)))
    assert found["fid"] == pytest.approx(frechet_distance(ours, target), rel=1e-4) and found["fid"] > 0
    assert found["kid"] == pytest.approx(kernel_distance(ours, target, subsets=2, size=3), rel=1e-4)
    assert found["inception_score"] == pytest.approx(inception_score(ours), rel=1e-4)
    assert found["images"] == 10
    weighted = evaluator.summarise(judged, np.array([2.0] * 5 + [0.0] * 5 + [1.0]))
    chosen = ours.select([i for i in range(5) for _ in range(2)])
    assert weighted["fid"] == pytest.approx(frechet_distance(chosen, target), rel=1e-4)
    assert weighted["images"] == 10
    again = evaluator_of(settings)  # verdicts of another session
    assert again.summarise(judged, np.ones(11)) == pytest.approx(found, rel=1e-4)
    samples[0].path.unlink()
    with pytest.raises(ConfigError, match="must stay where they are"):
        evaluator_of(settings).summarise(judged, np.ones(11))
    nothing = evaluator.summarise([Judged(broken, Verdict(reason="x"))], np.ones(1))
    assert math.isnan(nothing["fid"]) and nothing["images"] == 0


def test_clip_score_is_a_mean_over_samples(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def halves(images, prompts):\n    return [50.0 for _ in images]\n")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    settings = {"data": tmp_path / "prompts.txt", "clip": f"{tmp_path / 'own.py'}@halves"}
    evaluator = evaluator_of(settings)
    (some_images(1)[0]).save(tmp_path / "a.png")
    sample = Sample(evaluator.items()[0], 0, tmp_path / "a.png")
    (verdict,) = evaluator.judge([sample])
    assert verdict.values["clip_score"] == 50.0
    assert evaluator.summarise([Judged(sample, verdict)], np.ones(1))["clip_score"] == 50.0


def test_without_a_reference_or_with_classes(tmp_path: Path, weights: str) -> None:
    evaluator = Distribution(weights=weights, device="cpu")
    items = evaluator.items()
    assert len(items) == 1000 and items[7].prompt.metadata["class_id"] == 7
    assert items[207].prompt.text == "golden retriever"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    sample = Sample(items[0], 0, tmp_path / "a.png")
    (verdict,) = evaluator.judge([sample])
    found = evaluator.summarise([Judged(sample, verdict)], np.ones(1))
    assert math.isnan(found["fid"]) and math.isnan(found["kid"]) and math.isnan(found["inception_score"])
    assert any("no reference set" in note for note in evaluator.notes)
    assert lookup("evaluator", "distribution").target is Distribution
    with pytest.raises(ConfigError, match="reference must exist"):
        Distribution(reference=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="kid_size must be at least 2"):
        Distribution(kid_size=1)
