import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_video_models import rename_key
from torch import Tensor

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import read_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers.motion import (
    RAFT_WEIGHTS,
    Motion,
    at_eight_fps,
    is_dynamic,
    raft_pixels,
    top_magnitude,
)

PROMPT = Prompt("two red circles")
SIZE = (130, 128)  # the smallest that RAFT takes, with a margin on the right


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of torchvision's."""
    from torchvision.models.optical_flow import raft_large

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = raft_large(weights=None).state_dict()
    file = tmp_path_factory.mktemp("motion") / "raft_large_C_T_V1-22a6c225.pth"
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Motion:
    return Motion(checkpoint=str(checkpoint), updates=2, device="cpu", batch_size=2)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: Motion) -> Motion:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=2, size=SIZE)[0], *clips(2, frames=4, size=SIZE, seed=1)]


def raft(model: torch.nn.Module, first: Tensor, second: Tensor, updates: int) -> Tensor:
    """RAFT from its parts: all-pairs correlation, a pyramid of it, lookups, updates, convex upsampling."""
    one, two = model.feature_encoder(first), model.feature_encoder(second)
    batch, channels, h, w = one.shape
    volume = torch.einsum("bcij,bckl->bijkl", one, two) / math.sqrt(channels)
    levels = [volume.reshape(batch * h * w, 1, h, w)]
    for _ in range(3):
        levels.append(F.avg_pool2d(levels[-1], 2))
    hidden, context = model.context_encoder(first).split([128, 128], dim=1)
    hidden, context = hidden.tanh(), context.relu()
    ys, xs = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    start = torch.stack((xs, ys)).expand(batch, 2, h, w)
    at = start
    offsets = torch.arange(-4.0, 5.0)
    for _ in range(updates):
        found = []
        for level, table in enumerate(levels):
            x, y = (axis.reshape(-1, 1, 1) / 2**level for axis in at.unbind(1))
            # x goes by rows of the window and y by columns, as in the authors' code
            grid = torch.stack(
                torch.broadcast_tensors(x + offsets.view(1, 9, 1), y + offsets.view(1, 1, 9)), -1
            )
            size = torch.tensor([table.shape[-1] - 1, table.shape[-2] - 1])
            looked = F.grid_sample(table, 2 * grid / size - 1, align_corners=True)
            found.append(looked.view(batch, h, w, 81))
        correlation = torch.cat(found, -1).permute(0, 3, 1, 2)
        hidden, change = model.update_block(hidden, context, correlation, at - start)
        at = at + change
    weights = model.mask_predictor(hidden).view(batch, 1, 9, 8, 8, h, w).softmax(2)
    around = F.unfold(8 * (at - start), 3, padding=1).view(batch, 2, 9, 1, 1, h, w)
    return (weights * around).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * h, 8 * w)


def test_is_the_mean_of_the_longest_vectors_of_raft(checkpoint: Path, tiny: Motion) -> None:
    from torchvision.models.optical_flow import raft_large

    video = clips(1, frames=3, size=SIZE)[0]
    model = raft_large(weights=None).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    pixels = video.frames.permute(0, 3, 1, 2).float() / 255 * 2 - 1
    pixels = F.pad(pixels, (3, 3, 0, 0), mode="replicate")
    with torch.no_grad():
        flow = raft(model, pixels[:-1], pixels[1:], 2)
    lengths = flow.pow(2).sum(1).sqrt().flatten(1).sort(dim=1, descending=True).values
    magnitudes = lengths[:, : int(0.05 * 128 * 136)].mean(1)
    (score,) = tiny.score([video], [PROMPT])
    assert score.value == pytest.approx(float(magnitudes.mean()) * 256 / 128, rel=1e-4)
    assert score.parts["pairs"] == 2
    assert score.parts["dynamic"] == float(sum(m > 3 for m in magnitudes.tolist()) >= 1)


def uniform(length: float, shape: tuple[int, int] = (16, 24)) -> Tensor:
    """Flow of one length everywhere, to the lower right (3, 4)."""
    return torch.tensor([0.6, 0.8]).view(1, 2, 1, 1).expand(1, 2, *shape) * length


@pytest.mark.parametrize(("length", "dynamic"), [(2.9, 0.0), (3.1, 1.0)])
def test_the_value_is_in_pixels_at_a_side_of_256(tiny: Motion, length: float, dynamic: float) -> None:
    verifier = Motion(checkpoint="unused", device="cpu", batch_size=3)
    verifier._loaded = True
    calls: list[tuple[int, int]] = []

    def model(first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
        calls.append((len(first), num_flow_updates))
        return [uniform(0.0), uniform(length).expand(len(first), -1, -1, -1)]

    verifier._model = model
    (score,) = verifier.score(clips(1, frames=5, size=SIZE), [PROMPT])
    assert score.value == pytest.approx(2 * length, rel=1e-6)
    assert score.parts == {"dynamic": dynamic, "pairs": 4.0}
    assert calls == [(3, 20), (1, 20)]


def test_the_longest_five_percent() -> None:
    flow = torch.zeros(2, 2, 10, 40)
    flow[0, 0, 0, :20] = 7.0  # just the 20 of 400
    flow[1, 1, :, :] = -2.0
    assert top_magnitude(flow).tolist() == [7.0, 2.0]
    flow[0, 0, 0, 10:20] = 0.0
    assert top_magnitude(flow).tolist() == [3.5, 2.0]


def test_the_rule_of_vbench() -> None:
    # 16 frames: 4 of 15 pairs must exceed 6 px at a side of 256, 12 px at 512
    assert is_dynamic([6.1] * 4 + [0.0] * 11, 256) and not is_dynamic([6.1] * 3 + [0.0] * 12, 256)
    assert not is_dynamic([6.0] * 15, 256)
    assert not is_dynamic([11.9] * 15, 512) and is_dynamic([12.1] * 15, 512)
    assert is_dynamic([0.0], 256)  # two frames: round(0.5) is 0
    assert not is_dynamic([0.0] * 2, 256)


def test_frames_are_taken_at_about_eight_per_second() -> None:
    assert at_eight_fps(5, 8.0) == [0, 1, 2, 3, 4]
    assert at_eight_fps(7, 24.0) == [0, 3, 6]
    assert at_eight_fps(7, 16.0) == [0, 2, 4, 6]
    assert at_eight_fps(3, 1.0) == [0, 1, 2]


def test_only_those_frames_are_looked_at(tiny: Motion) -> None:
    video = clips(1, frames=5, size=SIZE)[0]
    (fast,) = tiny.score([Video(video.frames, fps=16.0)], [PROMPT])
    (thinned,) = tiny.score([Video(video.frames[::2], fps=8.0)], [PROMPT])
    assert fast.value == pytest.approx(thinned.value, rel=1e-5) and fast.parts["pairs"] == 2


def test_margins_repeat_the_edge() -> None:
    frames = torch.arange(2 * 13 * 9 * 3).view(2, 13, 9, 3).to(torch.uint8)
    pixels = raft_pixels(frames)
    assert pixels.shape == (2, 3, 16, 16)
    inner = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(pixels[..., 1:14, 3:12], inner)
    assert torch.allclose(pixels[..., 0, 3:12], inner[..., 0, :])
    assert torch.allclose(pixels[..., 15, 3:12], inner[..., 12, :])
    assert torch.allclose(pixels[..., 1:14, 15], inner[..., 8])
    assert raft_pixels(frames[:, :8, :8]).shape == (2, 3, 8, 8)


def test_the_batch_size_does_not_matter(checkpoint: Path) -> None:
    video = clips(1, frames=4, size=SIZE)
    values = [
        Motion(checkpoint=str(checkpoint), updates=1, device="cpu", batch_size=n)
        .score(video, [PROMPT])[0]
        .value
        for n in (1, 2, 4)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_unusable_samples_are_unscored_and_spoil_nothing(tiny: Motion) -> None:
    good = clips(1, frames=2, size=SIZE)[0]
    media = [
        some_images(1)[0],
        Video(good.frames[:1]),
        clips(1)[0],
        Video(good.frames, fps=24.0),
        Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)),
        good,
    ]
    scores = tiny.score(media, [PROMPT] * 6)
    assert [math.isnan(score.value) for score in scores] == [True] * 5 + [False]
    reasons = ["got an image", "only one", "more than 120 pixels", "needs two", "(0, 8, 8, 3)"]
    assert all(reason in (score.reason or "") for reason, score in zip(reasons, scores))
    assert scores[5].value == pytest.approx(tiny.score([good], [PROMPT])[0].value, rel=1e-6)
    assert tiny.score([], []) == []


def test_weights_are_loaded_strictly(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "raft.pth"
    file.write_bytes(checkpoint.read_bytes())
    rename_key(file, "mask_predictor.conv.weight", "mask_predictor.wrong.weight")
    with pytest.raises(VerifierError, match=r"'motion'.*1 missing \(mask_predictor.conv.weight\).*wrong"):
        Motion(checkpoint=str(file), device="cpu").load()
    file.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(VerifierError, match="whole safetensors or PyTorch file"):
        Motion(checkpoint=str(file), device="cpu").load()
    with pytest.raises(VerifierError, match="must hold raft_large_C_T_V1"):
        Motion(checkpoint=str(tmp_path), device="cpu").load()


def test_weights_are_those_of_torchvision() -> None:
    from torchvision.models.optical_flow import Raft_Large_Weights

    assert Raft_Large_Weights.C_T_V1.url == RAFT_WEIGHTS
    assert lookup("verifier", "motion").target is Motion
    with pytest.raises(ConfigError, match="updates must be at least 1"):
        Motion(updates=0)


@pytest.mark.download
def test_published_weights_measure_a_shift() -> None:
    """A textured image that slides by 5 pixels a frame moves by 5 pixels; needs torchvision's file in
    TTS_VISION_RAFT.
    """
    checkpoint = os.environ.get("TTS_VISION_RAFT", "")
    if not Path(checkpoint).is_file():
        pytest.skip("set TTS_VISION_RAFT to raft_large_C_T_V1-22a6c225.pth")
    still = F.interpolate(torch.rand(1, 3, 40, 48), (320, 384), mode="bicubic").clamp(0, 1)[0]
    moved = [still[:, 32:288, 64 - 5 * t : 320 - 5 * t] for t in range(3)]
    frames = (torch.stack(moved) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    (score,) = Motion(checkpoint=checkpoint).score([Video(frames)], [PROMPT])
    assert score.value == pytest.approx(5, abs=1) and score.parts["dynamic"] == 0
    file = os.environ.get("TTS_VISION_CLIP", "")
    if Path(file).is_file():
        assert Motion(checkpoint=checkpoint).score([read_media(Path(file))], [PROMPT])[0].value > 0
