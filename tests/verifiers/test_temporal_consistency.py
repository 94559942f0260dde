import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_backbones import rename_key, tiny_clip, tiny_dino, tiny_dinov2

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import VerifierError
from tts_vision.media import read_media
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers._backbones import dino_positions
from tts_vision.verifiers.temporal_consistency import TemporalConsistency, consistency, vbench_pixels

PROMPT = Prompt("two red circles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbones whose weights are far enough from zero that frames look different to them."""
    folder = tmp_path_factory.mktemp("consistency")
    generator = torch.Generator().manual_seed(0)
    for make, name in ((tiny_dino, "dino"), (tiny_clip, "clip"), (tiny_dinov2, "dinov2")):
        file = make(folder / name) / "model.safetensors"
        state = load_file(file)
        for key, value in state.items():
            if value.is_floating_point() and value.ndim:
                state[key] = value + 0.3 * torch.randn(value.shape, generator=generator)
        save_file(state, file, metadata={"format": "pt"})
    return folder


def build(folder: Path, features: str, **settings: object) -> TemporalConsistency:
    checkpoint = str(folder / str(settings.pop("name", features)))
    return TemporalConsistency(features=features, checkpoint=checkpoint, device="cpu", **settings)  # type: ignore[arg-type]


@pytest.fixture(params=["dino", "clip"], scope="module")
def tiny(request: pytest.FixtureRequest, folder: Path) -> TemporalConsistency:
    return build(folder, request.param, batch_size=3)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: TemporalConsistency) -> TemporalConsistency:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=2)[0], *clips(2, frames=8, seed=1)]


def test_the_formula_in_closed_form() -> None:
    """Unit vectors at 0, 60, 180 and 90 degrees, of any length."""
    angles = torch.tensor([0.0, 60.0, 180.0, 90.0]).deg2rad()
    features = torch.stack((angles.cos(), angles.sin()), 1) * torch.tensor([[1.0], [3.0], [0.5], [7.0]])
    previous, first = consistency(features)
    # to the one before: cos 60, cos 120 < 0, cos 90; to the first: cos 60, cos 180 < 0, cos 90
    assert previous == pytest.approx(0.5 / 3, abs=1e-6) and first == pytest.approx(0.5 / 3, abs=1e-6)
    turned = torch.stack((angles[:3].cos(), angles[:3].sin()), 1)[[0, 1, 1]]
    assert consistency(turned) == pytest.approx((0.75, 0.5), abs=1e-6)


def test_dino_against_transformers(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig.from_pretrained(folder / "dino", layer_norm_eps=1e-6)
    model = ViTModel.from_pretrained(folder / "dino", config=config, add_pooling_layer=False).eval()
    video = clips(1, frames=5)[0]
    # 48 x 40 frames become 268 x 224: 33 x 28 patches of 8
    pixels = F.interpolate(video.frames.permute(0, 3, 1, 2).float(), (224, 268), mode="bilinear") / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        tokens = model.embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat((model.embeddings.cls_token.expand(5, -1, -1), tokens), 1)
        tokens = tokens + dino_positions(model.embeddings.position_embeddings, 28, 33)
        for layer in model.layers:
            tokens = layer(tokens)
        features = model.layernorm(tokens)[:, 0].double()
    cosine = F.cosine_similarity
    each = [
        (
            max(0.0, float(cosine(features[t], features[t - 1], dim=0)))
            + max(0.0, float(cosine(features[t], features[0], dim=0)))
        )
        / 2
        for t in range(1, 5)
    ]
    (score,) = build(folder, "dino").score([video], [PROMPT])
    assert score.value == pytest.approx(sum(each) / 4, abs=1e-5)
    assert 0.1 < score.value < 0.9999


def test_clip_against_transformers(folder: Path) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder / "clip").eval()
    video = clips(1, frames=4)[0]
    # 48 x 40 frames become 38 x 32, of which the middle 32 columns are kept
    pixels = (
        F.interpolate(video.frames.permute(0, 3, 1, 2).float(), (32, 38), mode="bicubic")[..., 3:35] / 255
    )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixels).pooler_output).double()
    features = features / features.norm(dim=1, keepdim=True)
    gram = (features @ features.T).clamp(min=0)
    (score,) = build(folder, "clip").score([video], [PROMPT])
    assert score.parts["previous"] == pytest.approx(float(gram.diagonal(1).mean()), abs=1e-5)
    assert score.parts["first"] == pytest.approx(float(gram[0, 1:].mean()), abs=1e-5)
    assert score.value == pytest.approx((score.parts["previous"] + score.parts["first"]) / 2)


def test_frames_are_neither_clipped_nor_rounded() -> None:
    noise = (
        torch.randint(0, 2, (1, 9, 9, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 255
    )
    pixels = vbench_pixels(noise, "clip")
    black, white = (
        min((v - m) / s for m, s in zip((0.481, 0.457, 0.408), (0.268, 0.261, 0.275))) for v in (0, 1)
    )
    assert pixels.shape == (1, 3, 224, 224) and pixels.min() < black and pixels.max() > white + 0.3
    assert vbench_pixels(noise[:, :, :6], "dino").shape == (1, 3, 336, 224)  # uncropped


def test_a_still_clip_gets_one(tiny: TemporalConsistency) -> None:
    still = Video(clips(1)[0].frames[:1].repeat(3, 1, 1, 1))
    (score,) = tiny.score([still], [PROMPT])
    assert score.value == pytest.approx(1, abs=1e-5)


def test_the_batch_size_does_not_matter(folder: Path) -> None:
    video = clips(1, frames=7)
    values = [build(folder, "dino", batch_size=n).score(video, [PROMPT])[0].value for n in (1, 3, 16)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


def test_other_checkpoints_and_half_precision(folder: Path) -> None:
    video = clips(1)
    (dinov2,) = build(folder, "dino", name="dinov2").score(video, [PROMPT])
    (dino,) = build(folder, "dino").score(video, [PROMPT])
    (half,) = build(folder, "dino", dtype="bfloat16").score(video, [PROMPT])
    assert 0 < dinov2.value < 1 and dinov2.value != dino.value
    assert half.value == pytest.approx(dino.value, abs=0.1)


def test_unusable_samples_are_unscored_and_spoil_nothing(tiny: TemporalConsistency) -> None:
    good = clips(1)[0]
    media = [
        some_images(1)[0],
        Video(good.frames[:1]),
        good,
        Video(torch.zeros(3, 0, 8, 3, dtype=torch.uint8)),
    ]
    scores = tiny.score(media, [PROMPT] * 4)
    assert [math.isnan(score.value) for score in scores] == [True, True, False, True]
    assert "got an image" in (scores[0].reason or "") and "only one" in (scores[1].reason or "")
    assert scores[2].value == pytest.approx(tiny.score([good], [PROMPT])[0].value, abs=1e-6)
    assert tiny.score([], []) == []


@pytest.mark.parametrize(
    ("features", "key"), [("dino", "layernorm.weight"), ("clip", "visual_projection.weight")]
)
def test_weights_are_loaded_strictly(folder: Path, tmp_path: Path, features: str, key: str) -> None:
    rename_key(folder / features, tmp_path / features, key, "stranger.weight")
    with pytest.raises(VerifierError, match=rf"'temporal_consistency'.*{key}.*stranger.weight"):
        build(tmp_path, features).load()


def test_default_weights_are_those_of_vbench() -> None:
    entry = lookup("verifier", "temporal_consistency")
    assert entry.target is TemporalConsistency
    assert TemporalConsistency(device="cpu").checkpoint == "facebook/dino-vitb16"
    values = validate(entry.target, {"features": "clip"}, "verifier 'temporal_consistency'")
    assert TemporalConsistency(device="cpu", **values).checkpoint == "openai/clip-vit-base-patch32"


@pytest.mark.download
@pytest.mark.parametrize("features", ["dino", "clip"])
def test_published_weights_notice_a_cut(features: str) -> None:
    """A clip is more consistent than the same clip with foreign frames cut in; needs the two checkpoints in
    TTS_VISION_DINO and TTS_VISION_CLIP_B32, and a clip in TTS_VISION_CLIP.
    """
    names = {"dino": "DINO", "clip": "CLIP_B32"}
    checkpoint, file = (os.environ.get(f"TTS_VISION_{name}", "") for name in (names[features], "CLIP"))
    if not all(path and Path(path).exists() for path in (checkpoint, file)):
        pytest.skip(f"set TTS_VISION_{names[features]} and TTS_VISION_CLIP")
    video = read_media(Path(file))
    assert isinstance(video, Video)
    cut = video.frames.clone()
    cut[::2] = torch.randint(0, 256, cut[::2].shape, dtype=torch.uint8)
    verifier = TemporalConsistency(features=features, checkpoint=checkpoint)  # type: ignore[arg-type]
    whole, spoilt = verifier.score([video, Video(cut)], [PROMPT] * 2)
    assert whole.value > spoilt.value
