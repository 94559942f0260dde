from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_video_models import randomise, rename_key
from torch import Tensor

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import FAILS_AT
from tts_vision.verifiers.vjepa2_surprise import MEAN, STD, VJEPA2Surprise

PROMPT = Prompt("two red circles")
WINDOW, CONTEXT = 6, 4
SETTINGS: dict[str, Any] = {
    "window": WINDOW,
    "context": CONTEXT,
    "device": "cpu",
    "batch_size": 2,
}


def save_checkpoint(folder: Path) -> Path:
    """A tiny `VJEPA2Model`, encoder and predictor, as the hub has it."""
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        patch_size=8,
        crop_size=16,
        frames_per_clip=8,
        tubelet_size=2,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=3,
    )
    model = VJEPA2Model(config)
    randomise(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("vjepa2") / "tiny")


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> VJEPA2Surprise:
    return VJEPA2Surprise(checkpoint=str(checkpoint), **SETTINGS)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: VJEPA2Surprise) -> VJEPA2Surprise:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        return [*clips(2, frames=8), *clips(1, frames=11, size=(31, 17), seed=1)]


def surprise_of_window(model: Any, frames: Tensor, along: str) -> float:
    """WMReward's surprise of one window ``(T, H, W, 3)``, layer by layer.

    The encoder is given the tokens of the context frames alone, at their positions, as in V-JEPA 2's own
    code, where they are taken before the first layer.
    """
    pixels = F.interpolate(
        frames.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear", antialias=True, align_corners=False
    )
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    tokens = model.encoder.embeddings(((pixels / 255 - mean) / std)[None])
    per_tubelet = (16 // 8) ** 2
    known = CONTEXT // 2 * per_tubelet
    total = WINDOW // 2 * per_tubelet
    assert tokens.shape[1] == total

    def through(layers: Any, hidden: Tensor, positions: Tensor) -> Tensor:
        for layer in layers:
            hidden = layer(hidden, positions)[0]
        return hidden

    every = torch.arange(total)[None]
    target = model.encoder.layernorm(through(model.encoder.layer, tokens, every))[0, known:]
    seen = model.encoder.layernorm(through(model.encoder.layer, tokens[:, :known], every[:, :known]))
    predictor = model.predictor
    masked = predictor.embeddings.mask_tokens[1].expand(1, total - known, -1)
    hidden = torch.cat([predictor.embeddings.predictor_embeddings(seen), masked], dim=1)
    hidden = predictor.layernorm(through(predictor.layer, hidden, every))
    predicted = predictor.proj(hidden[:, known:])[0]

    def normed(rows: Tensor) -> Tensor:
        return (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    a, b = normed(predicted), normed(target)
    if along == "tokens":
        a, b = a.T, b.T
    cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
    return 1 - sum(cosines) / len(cosines)


@pytest.mark.parametrize("along", ["tokens", "channels"])
@pytest.mark.parametrize("stride", [1, 3])
def test_is_the_surprise_of_sliding_windows(along: Any, stride: int, checkpoint: Path) -> None:
    from transformers import VJEPA2Model

    model = VJEPA2Model.from_pretrained(checkpoint).eval()
    verifier = VJEPA2Surprise(checkpoint=str(checkpoint), along=along, stride=stride, **SETTINGS)
    video = clips(2, frames=11)[1]
    with torch.no_grad():
        starts = range(0, 11 - WINDOW + 1, stride)
        expected = [surprise_of_window(model, video.frames[i : i + WINDOW], along) for i in starts]
    assert len(expected) == {1: 6, 3: 2}[stride] and max(expected) - min(expected) > 1e-3
    (score,) = verifier.score([video], [PROMPT])
    assert score.value == pytest.approx(1 - sum(expected) / len(expected), abs=1e-5)
    assert score.parts == pytest.approx(
        {"surprise": sum(expected) / len(expected), "worst": max(expected)}, abs=1e-5
    )


def test_predictions_know_nothing_of_the_later_frames(tiny: VJEPA2Surprise) -> None:
    """With masks alone, the model's own call lets the encoder see what it should predict."""
    tiny.load()
    predicted = []
    hook = tiny._model.predictor.register_forward_hook(
        lambda module, given, output: predicted.append(output.last_hidden_state)
    )
    video = clips(1, frames=WINDOW)[0]
    other = Video(torch.cat([video.frames[:CONTEXT], 255 - video.frames[CONTEXT:]]), video.fps)
    first, second = (tiny.score([each], [PROMPT])[0].value for each in (video, other))
    hook.remove()
    assert torch.equal(*predicted) and first != second


def test_the_prompt_is_not_read(tiny: VJEPA2Surprise) -> None:
    video = clips(1)[0]
    one, two = tiny.score([video] * 2, [PROMPT, Prompt("a blue star")])
    assert one.value == two.value and -1 <= one.value <= 1


@pytest.mark.parametrize("size", [1, 5])
def test_windows_do_not_depend_on_how_many_are_computed_at_once(size: int, checkpoint: Path) -> None:
    settings = {**SETTINGS, "stride": 1, "batch_size": size}
    (score,) = VJEPA2Surprise(checkpoint=str(checkpoint), **settings).score(clips(1, frames=12), [PROMPT])
    (whole,) = VJEPA2Surprise(checkpoint=str(checkpoint), **{**settings, "batch_size": 7}).score(
        clips(1, frames=12), [PROMPT]
    )
    assert score.value == pytest.approx(whole.value, abs=1e-5)


def test_frames_are_taken_at_a_rate(checkpoint: Path) -> None:
    video = clips(1, frames=25)[0]
    slower = VJEPA2Surprise(checkpoint=str(checkpoint), fps=4.0, **SETTINGS)
    every = VJEPA2Surprise(checkpoint=str(checkpoint), **SETTINGS)
    (score,) = slower.score([video], [PROMPT])
    (same,) = every.score([Video(video.frames[::2], 4.0)], [PROMPT])
    assert score.value == pytest.approx(same.value, abs=1e-6)
    assert score.value != every.score([video], [PROMPT])[0].value
    # of a clip with fewer frames per second, all of them
    slow = Video(video.frames, 2.0)
    assert slower.score([slow], [PROMPT])[0].value == every.score([slow], [PROMPT])[0].value


def test_a_long_clip_is_looked_at_evenly(checkpoint: Path) -> None:
    video = clips(1, frames=29)[0]
    few = VJEPA2Surprise(checkpoint=str(checkpoint), frames=8, **SETTINGS)
    (score,) = few.score([video], [PROMPT])
    (same,) = few.score([Video(video.frames[::4], 2.0)], [PROMPT])
    assert score.value == pytest.approx(same.value, abs=1e-6)


def test_a_clip_fails_where_it_surprises(checkpoint: Path) -> None:
    video = clips(2, frames=12)[1]
    video.frames[9:] = torch.roll(255 - video.frames[9:], 20, 2)  # another scene from the tenth frame on
    settings = {**SETTINGS, "stride": 2}
    verifier = VJEPA2Surprise(checkpoint=str(checkpoint), **settings)
    alone = [verifier.score([Video(video.frames[i : i + WINDOW])], [PROMPT])[0] for i in (0, 2, 4, 6)]
    surprises = [score.parts["surprise"] for score in alone]
    assert FAILS_AT not in verifier.score([video], [PROMPT])[0].parts
    for limit in (-1.0, min(surprises), sorted(surprises)[2] + 1e-6, max(surprises) + 1e-3):
        strict = VJEPA2Surprise(checkpoint=str(checkpoint), fails_above=limit, **settings)
        found = strict.score([video], [PROMPT])[0].parts.get(FAILS_AT, math.nan)
        at = next((2 * i + CONTEXT for i, x in enumerate(surprises) if x > limit + 1e-9), math.nan)
        assert found == pytest.approx(at / video.fps, nan_ok=True)


def test_unusable_samples_are_unscored_and_spoil_nothing(tiny: VJEPA2Surprise) -> None:
    good = clips(1)[0]
    bad = [
        some_images(1)[0],
        Video(good.frames[:5]),
        Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)),
        Video(good.frames.float()),
        Video(good.frames[..., :2]),
    ]
    scores = tiny.score([*bad, good, Video(torch.zeros(6, 1, 1, 3, dtype=torch.uint8))], [PROMPT] * 7)
    reasons = [
        "got an image",
        "windows of 6 frames but looks at 5",
        "(0, 8, 8, 3)",
        "must be uint8",
        "(8, 40, 48, 2)",
    ]
    for score, reason in zip(scores, reasons):
        assert math.isnan(score.value) and reason in (score.reason or "")
    assert scores[5].value == pytest.approx(tiny.score([good], [PROMPT])[0].value, abs=1e-6)
    assert not math.isnan(scores[6].value)


def test_half_precision(checkpoint: Path, tiny: VJEPA2Surprise) -> None:
    half = VJEPA2Surprise(checkpoint=str(checkpoint), dtype="bfloat16", **SETTINGS)
    rough, exact = (v.score(clips(1), [PROMPT])[0].value for v in (half, tiny))
    assert rough == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("part", ["encoder.layernorm.weight", "predictor.embeddings.mask_tokens"])
def test_a_renamed_key_is_an_error_that_names_it(part: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "renamed")
    rename_key(folder / "model.safetensors", part, "other.weight")
    with pytest.raises(VerifierError, match=rf"{part}.*other\.weight"):
        VJEPA2Surprise(checkpoint=str(folder), **SETTINGS).load()


def test_weights_of_another_size_are_an_error_that_names_them(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "other")
    state = load_file(folder / "model.safetensors")
    state["predictor.proj.weight"] = torch.zeros(24, 13)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"'predictor\.proj\.weight' is \(24, 13\) instead of \(24, 12\)"):
        VJEPA2Surprise(checkpoint=str(folder), **SETTINGS).load()


def test_an_encoder_without_its_predictor_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "encoder")
    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith("predictor.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"missing \(predictor\."):
        VJEPA2Surprise(checkpoint=str(folder), **SETTINGS).load()


def test_parameters_are_checked(checkpoint: Path) -> None:
    for wrong in ({"context": 16}, {"context": 0}, {"stride": 0}, {"frames": 15}):
        with pytest.raises(ConfigError, match="must satisfy 0 < context < window <= frames and stride >= 1"):
            VJEPA2Surprise(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fps must be positive"):
        VJEPA2Surprise(fps=0.0)
    with pytest.raises(ConfigError, match="along must be channels or tokens"):
        VJEPA2Surprise(along="time")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiples of 2, the frames of a token"):
        VJEPA2Surprise(checkpoint=str(checkpoint), window=6, context=3).load()
    assert lookup("verifier", "vjepa2_surprise").target is VJEPA2Surprise
