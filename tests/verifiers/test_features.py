import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import tiny_clip, tiny_dino, tiny_dinov2

from samples import clips, some_images
from tts_vision import Video
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.types import FeatureExtractor
from tts_vision.verifiers._backbones import clip_standard_pixels, standard_pixels
from tts_vision.verifiers._features import ImageFeatures
from tts_vision.verifiers.clip_features import ClipFeatures
from tts_vision.verifiers.dino_features import DinoFeatures, first_component
from tts_vision.verifiers.playground_features import PlaygroundFeatures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    tiny_dino(folder / "dino")
    tiny_dinov2(folder / "dinov2")
    tiny_clip(folder / "clip")
    return folder


MAKERS: dict[str, Callable[..., ImageFeatures]] = {
    "dino": DinoFeatures,
    "dinov2": DinoFeatures,
    "clip": ClipFeatures,
}


@pytest.fixture(params=["dino", "dinov2", "clip"], scope="module")
def extractor(request: pytest.FixtureRequest, folder: Path) -> ImageFeatures:
    return MAKERS[request.param](checkpoint=str(folder / request.param), device="cpu", batch_size=3)


def test_one_row_each_in_order_whatever_the_batch(extractor: ImageFeatures) -> None:
    assert isinstance(extractor, FeatureExtractor) and extractor.accepts == {"image", "video"}
    media = [*some_images(3), *clips(2, frames=5, seed=7)]
    rows = extractor.features(media)
    assert rows.shape == (5, extractor.size) and rows.dtype == torch.float32 and rows.device.type == "cpu"
    assert rows.unique(dim=0).shape[0] == 5
    assert torch.equal(rows, extractor.features(media))
    assert torch.allclose(rows.flip(0), extractor.features(media[::-1]), atol=1e-4)
    assert torch.allclose(rows, torch.cat([extractor.features([m]) for m in media]), atol=1e-4)
    assert extractor.features([]).shape == (0, extractor.size)


def test_a_clip_is_the_mean_of_its_frames(extractor: ImageFeatures) -> None:
    video = clips(1, frames=15)[0]
    extractor.frames = 8
    frames = [Image.fromarray(video.frames[t].numpy()) for t in range(0, 15, 2)]
    assert torch.allclose(extractor.features([video])[0], extractor.features(frames).mean(0), atol=1e-5)
    short = Video(video.frames[:3])
    frames = [Image.fromarray(frame.numpy()) for frame in short.frames]
    assert torch.allclose(extractor.features([short])[0], extractor.features(frames).mean(0), atol=1e-5)


def test_odd_images_are_embedded_as_what_they_show(extractor: ImageFeatures) -> None:
    image = some_images(1)[0]
    see_through = image.convert("RGBA")
    rows = extractor.features([image, see_through, image.convert("L"), Image.new("RGB", (1, 1))])
    assert rows.isfinite().all() and torch.allclose(rows[0], rows[1], atol=1e-4)
    assert not torch.allclose(rows[0], rows[2], atol=1e-4)


def test_a_sample_without_features_is_an_error_that_names_it(extractor: ImageFeatures) -> None:
    good = some_images(1)[0]
    with pytest.raises(VerifierError, match=r"sample 1 \(from 0\) is not: a clip must be"):
        extractor.features([good, Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8))])
    with pytest.raises(VerifierError, match=r"sample 2 \(from 0\) is not: .* got str"):
        extractor.features([good, good, "a path"])  # type: ignore[list-item]


def test_dino_against_transformers(folder: Path) -> None:
    from transformers import Dinov2Model

    media = some_images(2, size=(60, 90))
    tokens = Dinov2Model.from_pretrained(folder / "dinov2")(
        standard_pixels(media, resize=256, crop=224)
    ).last_hidden_state
    for pool, expected in (("cls", tokens[:, 0]), ("patches_mean", tokens[:, 1:].mean(1))):
        found = DinoFeatures(checkpoint=str(folder / "dinov2"), pool=pool, device="cpu").features(media)  # type: ignore[arg-type]
        assert torch.allclose(found, expected, atol=1e-5)


def test_clip_against_transformers(folder: Path) -> None:
    from transformers import CLIPModel

    media = some_images(2, size=(60, 90))
    model = CLIPModel.from_pretrained(folder / "clip")
    vision = model.vision_model(clip_standard_pixels(model, media)).pooler_output
    found = ClipFeatures(checkpoint=str(folder / "clip"), device="cpu").features(media)
    assert torch.allclose(found, model.visual_projection(vision), atol=1e-5)
    assert not torch.allclose(found.norm(dim=-1), torch.ones(2), atol=1e-2)  # as documented, not normalised


@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_half_precision(kind: str, folder: Path) -> None:
    media = some_images(2)
    whole, half = (
        MAKERS[kind](checkpoint=str(folder / kind), device="cpu", dtype=dtype).features(media)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(whole, half).min() > 0.99


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    extractor = ClipFeatures(checkpoint=str(folder / "clip"), device="cpu")
    extractor.load()
    extractor._model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(VerifierError, match=r"sample 0 \(from 0\) is not: .* not finite"):
        extractor.features(some_images(1))


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="frames must be at least 1"):
        DinoFeatures(frames=0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        ClipFeatures(batch_size=0)
    with pytest.raises(VerifierError, match="clip_features"):
        ClipFeatures(checkpoint="/nowhere").load()
    assert lookup("features", "dino_features").target is DinoFeatures
    assert lookup("features", "clip_features").target is ClipFeatures


@pytest.mark.download
@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_published_weights_put_views_of_one_image_together(kind: str) -> None:
    """Checks that an image is nearer to its mirror image than to another; needs a folder in
    TTS_VISION_DINO_FEATURES or TTS_VISION_CLIP_FEATURES.
    """
    name = f"TTS_VISION_{kind.upper()}_FEATURES"
    if not Path(os.environ.get(name, "")).is_dir() or name not in os.environ:
        pytest.skip(f"set {name} to a folder")
    a, b = some_images(2, size=(256, 256))
    mirrored = a.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = torch.nn.functional.normalize(MAKERS[kind](checkpoint=os.environ[name]).features([a, mirrored, b]))
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


# Reduced patches


POOLS = ("patches_pca", "pca_all")


def reduced(folder: Path, pool: str, **settings: Any) -> DinoFeatures:
    return DinoFeatures(checkpoint=str(folder / "dinov2"), pool=pool, device="cpu", **settings)  # type: ignore[arg-type]


def test_first_component_by_hand() -> None:
    # three tokens on a line through (1, 1): two near each other, one far off
    tokens = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    expected = (torch.tensor([0.0, 1.0, 5.0]) - 2) * 2**0.5
    assert torch.allclose(first_component(tokens[None])[0], expected, atol=1e-6)
    # whatever the sign in which the tokens are written, the far one is positive
    assert torch.allclose(first_component(-tokens[None])[0], expected, atol=1e-6)
    assert torch.equal(first_component(torch.ones(1, 4, 3)), torch.zeros(1, 4))


def test_first_component_is_that_of_sklearn() -> None:
    from sklearn.decomposition import PCA

    tokens = torch.randn(5, 40, 12, generator=torch.Generator().manual_seed(0)) ** 3
    for group, shares in zip(tokens, first_component(tokens)):
        found = torch.from_numpy(PCA(1).fit_transform(group.double().numpy())[:, 0]).float()
        assert torch.allclose(shares.abs(), found.abs(), atol=1e-4)
        assert shares.pow(3).sum() > 0


def test_near_identical_images_stay_near(folder: Path) -> None:
    extractor = reduced(folder, "patches_pca")
    media = some_images(6, size=(224, 224))
    pixels = [np.asarray(image).astype(np.int16) for image in media]
    noise = np.random.default_rng(0).integers(-1, 2, (6, *pixels[0].shape))
    nearly = [Image.fromarray(np.clip(p + n, 0, 255).astype(np.uint8)) for p, n in zip(pixels, noise)]
    rows, others = extractor.features(media), extractor.features(nearly)
    assert rows.shape == (6, extractor.size) == (6, (224 // extractor._model.config.patch_size) ** 2)
    same = (rows - others).norm(dim=1)
    flipped = (rows + others).norm(dim=1)
    assert (same < 0.1 * flipped).all()


def test_one_row_does_not_depend_on_others_unless_it_says_so(folder: Path) -> None:
    media = [*some_images(4), *clips(1, frames=3)]
    alone, together = reduced(folder, "patches_pca", batch_size=2), reduced(folder, "pca_all", batch_size=2)
    whole = alone.features(media)
    assert torch.allclose(whole, torch.cat([alone.features([m]) for m in media]), atol=1e-3)
    rows = together.features(media)
    assert rows.shape == whole.shape == (5, together.size)
    assert torch.allclose(rows.flip(0), together.features(media[::-1]), atol=1e-3)
    assert not torch.allclose(rows[:2], together.features(media[:2]), atol=1e-2)
    # one component over all tokens: centred over all of them
    assert rows.mean() == pytest.approx(0, abs=1e-4) and rows.mean(1).abs().max() > 1e-3


@pytest.mark.parametrize("pool", POOLS)
def test_whole_images_are_reduced(pool: str, folder: Path) -> None:
    extractor = reduced(folder, pool)
    assert extractor.features([]).shape == (0, extractor.size)
    image = some_images(1, size=(300, 100))[0]
    edge = image.copy()
    edge.paste((255, 255, 255), (0, 0, 20, 100))  # a centre crop would not show it
    rows = extractor.features([image, edge])
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)


# The playground's own


def test_playground_features_are_those_of_its_verifier() -> None:
    from tts_vision.pipelines.playground import weights_path
    from tts_vision.types import Prompt
    from tts_vision.verifiers.playground import PlaygroundClip

    if not weights_path("clip").exists():
        pytest.skip("the playground is not trained")
    extractor, verifier = PlaygroundFeatures(device="cpu", batch_size=2), PlaygroundClip(device="cpu")
    media = some_images(3, size=(64, 64))
    rows = extractor.features(media)
    assert rows.shape == (3, extractor.size) and rows.unique(dim=0).shape[0] == 3
    text = "two red circles"
    verifier.load()
    words = verifier._encode([text])
    cosines = torch.cosine_similarity(rows, words.cpu())
    scores = verifier.score(media, [Prompt(text)] * 3)
    assert cosines.tolist() == pytest.approx([score.value for score in scores], abs=1e-4)
    assert lookup("features", "playground_features").target is PlaygroundFeatures


def test_playground_features_without_weights() -> None:
    with pytest.raises(VerifierError, match="playground_features"):
        PlaygroundFeatures(path=Path("/nowhere")).load()
