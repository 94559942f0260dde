"""VBench's measures by stub flows, by hand, and on tiny models in the published layout."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vbench import HEAD, RAFT, tiny_weights
from torch import Tensor

from samples import clips
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.vbench.judges import USED, WEIGHTS, Judges
from tts_vision.eval.vbench.measures import Dynamic, Flickering, FrameMean, check_static
from tts_vision.eval.vbench.static_filter import first_static, is_static, lengths
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.types import Prompt, Score, Video
from tts_vision.verifiers._frames import middles
from tts_vision.verifiers.flicker import steadiness
from tts_vision.verifiers.motion import Motion
from tts_vision.verifiers.temporal_consistency import vbench_pixels

PROMPT = Prompt("two red circles")
STYLED = Prompt(
    "a cat, oil painting", {"auxiliary_info": {"appearance_style": {"appearance_style": "oil painting"}}}
)
MEAN, STD = (
    torch.tensor(each).view(1, 3, 1, 1)
    for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


def judges(weights: dict[str, str], **settings: Any) -> Judges:
    chosen = {"strict": False, "static_filter": True, "batch_size": 3} | settings
    return Judges(weights, device="cpu", dtype="float32", **chosen)


# Frames and pixels


def test_frame_choice() -> None:
    assert middles(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert middles(17, 8) == [0, 2, 4, 6, 8, 10, 12, 15]
    assert middles(3, 8) == [0, 1, 2, 2, 2, 2, 2, 2] and middles(16, 16) == list(range(16))


def test_resizing_overshoots_without_being_clipped() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 256, 256, 3), generator=generator, dtype=torch.uint8)
    levels = (vbench_pixels(frames, "clip") * STD + MEAN) * 255
    assert levels.min() < -45 and levels.max() > 295
    exact = F.interpolate(frames.permute(0, 3, 1, 2).float(), (224, 224), mode="bicubic")
    assert torch.allclose(levels, exact, atol=0.01)
    assert (levels - levels.round()).abs().max() > 0.4


# Optical flow, by a stub


def stub(scale: float = 1.0) -> tuple[Motion, list[tuple[int, int]]]:
    """A RAFT whose flow between plain frames is uniform: `scale` times the difference of their levels.

    Returns:
        It, and the pairs of levels that it was asked about.
    """
    raft = Motion(checkpoint="unused", device="cpu", batch_size=3)
    raft._loaded = True
    asked: list[tuple[int, int]] = []

    def model(first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
        assert num_flow_updates == 20 and first.min() >= -1 and first.max() <= 1
        levels = [((each.mean((1, 2, 3)) + 1) * 127.5).round().int() for each in (first, second)]
        asked.extend(zip(*(each.tolist() for each in levels), strict=True))
        lengths = scale * (levels[1] - levels[0]).abs().float().view(-1, 1, 1)
        flow = torch.stack((lengths, torch.zeros_like(lengths)), 1)
        return [
            torch.full((len(first), 2, *first.shape[2:]), math.nan),
            flow.expand(-1, -1, *first.shape[2:]),
        ]

    raft._model = model
    return raft, asked


def plain(levels: Sequence[int], fps: float = 8.0, side: int = 128) -> Video:
    """A clip of plain frames."""
    return Video(
        torch.stack([torch.full((side, side + 10, 3), level, dtype=torch.uint8) for level in levels]), fps
    )


def test_the_filter_looks_at_neighbours_and_at_both_ends() -> None:
    raft, asked = stub(0.5)
    neighbours, ends = lengths(raft, plain([10, 20, 50, 46]))
    assert asked == [(10, 20), (20, 50), (50, 46), (10, 46), (46, 10)]
    assert neighbours == pytest.approx([5, 15, 2]) and ends == pytest.approx([18, 18])


def test_the_filter_takes_the_longest_fiftieth() -> None:
    raft, _ = stub()
    flow = torch.zeros(1, 2, 128, 144)
    flow[:, 0, :3] = torch.arange(3 * 144).view(3, 144).float()
    raft._model = lambda first, second, num_flow_updates: [flow.expand(len(first), -1, -1, -1)]
    cut = int(128 * 144 * 0.02)
    expected = np.sort(flow.numpy()[0, 0].ravel())[::-1][:cut].mean()
    assert lengths(raft, plain([0, 1]))[0] == pytest.approx([expected])


@pytest.mark.parametrize(
    ("neighbours", "ends", "expected"),
    [
        # 16 frames of side 256: more than 3 px between at most 2 pairs, at most 12 px between the ends
        ([0.0] * 15, [0.0, 0.0], True),
        ([3.1] * 2 + [0.0] * 13, [0.0, 0.0], True),
        ([3.1] * 3 + [0.0] * 12, [0.0, 0.0], False),
        ([3.0] * 15, [0.0, 0.0], True),
        ([0.0] * 15, [12.0, 12.0], True),
        ([0.0] * 15, [12.1, 0.0], False),
        ([0.0] * 15, [0.0, 12.1], False),
        # 2 frames: the count rounds to 0, so that nothing may move
        ([0.0], [0.0, 0.0], True),
        ([0.0], [0.1, 0.0], False),
        ([3.1], [0.0, 0.0], False),
        # 4 frames: half a pair rounds to the even 0; 12 frames: one and a half to the even 2
        ([3.1, 0.0, 0.0], [0.0, 0.0], False),
        ([3.1] * 2 + [0.0] * 9, [0.0, 0.0], True),
    ],
)
def test_the_static_filter_by_hand(neighbours: list[float], ends: list[float], expected: bool) -> None:
    assert is_static(neighbours, ends, 256) is expected
    assert is_static([2 * n for n in neighbours], [2 * n for n in ends], 512) is expected


def test_five_still_clips_are_kept_in_the_order_of_names() -> None:
    assert first_static([(index, f"clip {index}") for index in range(25)]) == [
        "clip 0",
        "clip 1",
        "clip 10",
        "clip 11",
        "clip 12",
    ]
    assert first_static([(7, "a"), (3, "b")]) == ["b", "a"]


def test_flickering_is_measured_on_still_clips() -> None:
    raft, _ = stub(0.1)
    still = plain([10, 14] * 8)
    moving = plain([10, 90, 170, 250])
    assert Flickering(raft).measure(still, PROMPT).value == pytest.approx(1 - 4 / 255)
    with pytest.raises(UnusableSample, match="moves"):
        Flickering(raft).measure(moving, PROMPT)
    assert Flickering(None).measure(moving, PROMPT).value == pytest.approx(1 - 80 / 255)
    with pytest.raises(UnusableSample, match="more than 120 pixels"):
        check_static(raft, plain([1, 2], side=100))


@pytest.mark.parametrize(
    ("levels", "fps", "dynamic", "frames"),
    [
        ([0, 100] * 2, 8, 1.0, 4),  # 1 of 3 pairs suffices
        ([0, 0, 0, 100], 8, 1.0, 4),
        ([0, 20] * 8, 8, 0.0, 16),  # 2 px, where more than 3 at a side of 128 count
        ([0] * 13 + [100, 0, 100], 8, 0.0, 16),  # 3 pairs of the 4 that N = 16 asks for
        ([0] * 12 + [100, 0, 100, 0], 8, 1.0, 16),
        ([0, 100, 0] * 8, 24, 0.0, 8),  # at 8 fps only every third frame is seen
    ],
)
def test_dynamic_degree(levels: list[int], fps: float, dynamic: float, frames: int) -> None:
    raft, _ = stub(0.1)
    found = Dynamic(raft, strict=False).measure(plain(levels, fps), PROMPT)
    assert found.value == dynamic and found.details["frames"] == frames


def test_two_sampled_frames_are_dynamic_in_vbench_and_refused_here() -> None:
    raft, asked = stub()
    for video in (plain([5, 5]), plain([5] * 6, fps=24)):
        assert Dynamic(raft, strict=True).measure(video, PROMPT).value == 1
        with pytest.raises(UnusableSample, match="2 of the frames at 8 per second"):
            Dynamic(raft, strict=False).measure(video, PROMPT)
    assert Dynamic(raft, strict=True).measure(plain([5, 200], fps=24), PROMPT).value == 0
    with pytest.raises(UnusableSample, match="1 of the frames"):
        Dynamic(raft, strict=False).measure(plain([5, 200], fps=24), PROMPT)
    assert asked == []


# Tiny models


def test_consistency_weights_clips_by_their_pairs(weights: dict[str, str]) -> None:
    video = clips(1, frames=7)[0]
    for name in ("subject_consistency", "background_consistency"):
        measure = judges(weights).make(name)
        found = measure.measure(video, PROMPT)
        assert found.weight == 6 and 0 < found.value < 1
        still = measure.measure(Video(video.frames[:1].repeat(3, 1, 1, 1)), PROMPT)
        assert still.value == pytest.approx(measure.still, abs=1e-5)


def test_aesthetic_quality_is_the_linear_head_on_unfiltered_frames(weights: dict[str, str]) -> None:
    from transformers import CLIPModel

    video = clips(1, frames=5, size=(96, 80))[0]
    model = CLIPModel.from_pretrained(weights["clip_l14"]).eval()
    pixels = F.interpolate(video.frames.permute(0, 3, 1, 2).float(), (32, 38), mode="bicubic")[..., 3:35]
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model((pixels / 255 - MEAN) / STD).pooler_output)
    head = torch.load(weights["aesthetic"])
    rated = F.normalize(seen, dim=-1) @ head["weight"].T + head["bias"]
    found = judges(weights).make("aesthetic_quality").measure(video, PROMPT)
    assert found.value == pytest.approx(float(rated.mean()) / 10, abs=1e-5) and found.weight == 1


def test_appearance_style_is_the_mean_cosine_with_the_style(weights: dict[str, str]) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    video = clips(1, frames=5, size=(96, 80))[0]
    model = CLIPModel.from_pretrained(weights["clip_b32"]).eval()
    words = CLIPTokenizer.from_pretrained(weights["clip_b32"])(["oil painting"], return_tensors="pt")
    cosines = []
    for frame in video.frames:
        small = Image.fromarray(frame.numpy()).resize((38, 32), Image.Resampling.BICUBIC).crop((3, 0, 35, 32))
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            text = model.text_projection(model.text_model(**words).pooler_output)
            image = model.visual_projection(model.vision_model((pixels - MEAN) / STD).pooler_output)
        cosines.append(float(F.cosine_similarity(text, image)))
    found = judges(weights).make("appearance_style").measure(video, STYLED)
    assert found.value == pytest.approx(sum(cosines) / 5, abs=1e-5) and found.weight == 5


def test_text_consistency_is_that_of_viclip(weights: dict[str, str]) -> None:
    from tts_vision.verifiers.viclip_score import ViClipScore

    made = judges(weights)
    video = clips(1, frames=9)[0]
    (score,) = ViClipScore(checkpoint=weights["viclip"], device="cpu").score([video], [PROMPT])
    measures = [made.make(name) for name in ("overall_consistency", "temporal_style")]
    assert [each.measure(video, PROMPT).value for each in measures] == [score.value] * 2
    assert measures[0].verifier is measures[1].verifier  # type: ignore[attr-defined]


def test_flow_of_a_tiny_raft(weights: dict[str, str]) -> None:
    made = judges(weights)
    made.raft.updates = 2
    video = clips(1, frames=3, size=(130, 128))[0]
    neighbours, ends = lengths(made.raft, video)
    assert len(neighbours) == 2 and len(ends) == 2 and all(math.isfinite(n) for n in neighbours + ends)
    assert made.make("dynamic_degree").measure(video, PROMPT).value in (0.0, 1.0)


def test_frame_means_need_every_frame() -> None:
    class Half(BatchedVerifier):
        name = "half"

        def _load(self) -> None:
            pass

        def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
            dark = [np.asarray(sample).mean() < 100 for sample in samples]
            return [Score.unscored("too dark") if d else Score(value=30.0) for d in dark]

    measure = FrameMean(Half(device="cpu"), scale=10)
    assert measure.measure(plain([200, 150]), PROMPT).value == 3
    with pytest.raises(UnusableSample, match="too dark"):
        measure.measure(plain([200, 50]), PROMPT)


@pytest.mark.parametrize(
    ("model", "dimension", "file", "key"),
    [
        ("dino", "subject_consistency", "model.safetensors", "layernorm.weight"),
        ("clip_b32", "background_consistency", "model.safetensors", "visual_projection.weight"),
        ("clip_b32", "appearance_style", "model.safetensors", "text_projection.weight"),
        ("clip_l14", "aesthetic_quality", "model.safetensors", "visual_projection.weight"),
        ("aesthetic", "aesthetic_quality", HEAD, "bias"),
        ("raft", "dynamic_degree", RAFT, "mask_predictor.conv.bias"),
        ("viclip", "overall_consistency", "ViClip-InternVid-10M-FLT.pth", "vision_encoder.proj"),
    ],
)
def test_weights_are_loaded_strictly(
    weights: dict[str, str], tmp_path: Path, model: str, dimension: str, file: str, key: str
) -> None:
    source = Path(weights[model])
    folder = source if source.is_dir() else source.parent
    for each in folder.iterdir():
        if each.is_file():
            (tmp_path / each.name).write_bytes(each.read_bytes())
    broken = tmp_path / file
    if file.endswith(".pth"):
        state = torch.load(broken, weights_only=True)
        state.get("model", state).pop(key)
        torch.save(state, broken)
    else:
        tensors = load_file(broken)
        del tensors[key]
        save_file(tensors, broken, metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=key.replace(".", r"\.")):
        judges(weights | {model: str(tmp_path)}).make(dimension).load()


def test_models_of_dimensions() -> None:
    made = judges({})
    assert made.models(["temporal_flickering"]) == ["raft"]
    assert judges({}, static_filter=False).models(["temporal_flickering"]) == []
    assert made.models(["overall_consistency", "temporal_style", "color_proxy"]) == [
        "viclip",
        "detector",
        "clip_l14",
    ]
    assert {name for names in USED.values() for name in names} == set(WEIGHTS)
    with pytest.raises(ConfigError, match="got 'clip'"):
        judges({"clip": "x"})


def test_steadiness_of_a_flash_is_nothing() -> None:
    assert steadiness(plain([0, 255, 0]).frames) == 0 and steadiness(plain([9, 9]).frames) == 1
