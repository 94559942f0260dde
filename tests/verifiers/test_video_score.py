import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_video_models import randomise, rename_key, tokenizer

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import read_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers.video_score import ASPECTS, TEMPLATE, VideoScore

PROMPT = Prompt("two red circles")
LATENTS = 4


def save_checkpoint(folder: Path) -> Path:
    """A tiny `Idefics2ForSequenceClassification`: ``model.*``, ``score.weight`` and ``score.bias``."""
    from transformers import Idefics2Config, Idefics2ImageProcessor, Idefics2Model, Idefics2Processor

    words = tokenizer(
        TEMPLATE, ["<fake_token_around_image>", "<image>"], pad_token="<unk>", padding_side="left"
    )
    processor = Idefics2Processor(
        Idefics2ImageProcessor(
            do_image_splitting=False, size={"shortest_edge": 28, "longest_edge": 56}, do_convert_rgb=True
        ),
        words,
        image_seq_len=LATENTS,
    )
    config = Idefics2Config(
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        text_config={
            "model_type": "mistral",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(words),
            "pad_token_id": 0,
        },
    )
    model = Idefics2Model(config)
    head = torch.nn.Linear(32, 5)
    randomise(model)
    randomise(head)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    state |= {f"score.{key}": value for key, value in head.state_dict().items()}
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["Idefics2ForSequenceClassification"]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("video_score") / "tiny")


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> VideoScore:
    return VideoScore(checkpoint=str(checkpoint), frames=4, device="cpu", dtype="float32", batch_size=2)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: VideoScore) -> VideoScore:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        # of unequal length, so that a batch is padded
        return [clips(1, frames=2)[0], *clips(2, frames=8, seed=1)]


def test_is_the_head_on_the_last_token_of_idefics2(checkpoint: Path, tiny: VideoScore) -> None:
    from transformers import AutoConfig, AutoProcessor, Idefics2Model

    state = load_file(checkpoint / "model.safetensors")
    model = Idefics2Model(AutoConfig.from_pretrained(checkpoint)).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    video = clips(1, frames=8)[0]
    stills = [Image.fromarray(video.frames[i].numpy()) for i in (0, 2, 4, 6)]
    text = TEMPLATE.format(prompt=PROMPT.text) + "<image> <image> <image> <image> "
    inputs = AutoProcessor.from_pretrained(checkpoint)(text=text, images=stills, return_tensors="pt")
    with torch.no_grad():
        last = model(**inputs).last_hidden_state[0, -1]
    expected = (state["score.weight"] @ last + state["score.bias"]).tolist()

    (score,) = tiny.score([video], [PROMPT])
    assert list(score.parts) == list(ASPECTS)
    assert list(score.parts.values()) == pytest.approx(expected, abs=1e-4)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-4)


def test_one_aspect_can_be_the_value(checkpoint: Path) -> None:
    one = VideoScore(checkpoint=str(checkpoint), aspect="dynamic_degree", device="cpu", dtype="float32")
    (score,) = one.score(clips(1), [PROMPT])
    assert score.value == score.parts["dynamic_degree"]


def test_half_precision(checkpoint: Path, tiny: VideoScore) -> None:
    half = VideoScore(checkpoint=str(checkpoint), frames=4, device="cpu")
    rough, exact = (v.score(clips(1), [PROMPT])[0] for v in (half, tiny))
    assert list(rough.parts.values()) == pytest.approx(list(exact.parts.values()), abs=0.3)


def test_the_prompt_matters_and_cannot_ask_for_a_frame(tiny: VideoScore) -> None:
    video = clips(1)[0]
    plain, other, odd = tiny.score(
        [video] * 3, [PROMPT, Prompt("a blue star"), Prompt("two <image>red circles")]
    )
    assert plain.value != other.value
    assert odd.value == pytest.approx(plain.value, abs=1e-4)


def test_a_renamed_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "renamed")
    rename_key(folder / "model.safetensors", "score.weight", "scores.weight")
    with pytest.raises(VerifierError, match=r"score\.weight.*scores\.weight"):
        VideoScore(checkpoint=str(folder), device="cpu", dtype="float32").load()


def test_a_missing_layer_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "shorter")
    state = load_file(folder / "model.safetensors")
    del state["model.connector.perceiver_resampler.latents"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"perceiver_resampler\.latents"):
        VideoScore(checkpoint=str(folder), device="cpu", dtype="float32").load()


def test_unusable_samples_are_unscored_and_spoil_nothing(tiny: VideoScore) -> None:
    good = clips(1)[0]
    empty = Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8))
    single = Video(good.frames[:1])
    pixel = Video(torch.zeros(3, 1, 1, 3, dtype=torch.uint8))
    scores = tiny.score([some_images(1)[0], empty, good, single, pixel], [PROMPT] * 5)
    assert "got an image" in (scores[0].reason or "") and "(0, 8, 8, 3)" in (scores[1].reason or "")
    assert [np.isnan(score.value) for score in scores] == [True, True, False, False, False]
    assert scores[2].value == pytest.approx(tiny.score([good], [PROMPT])[0].value, abs=1e-4)
    assert tiny.score([], []) == []


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="frames must be at least 1"):
        VideoScore(frames=0)
    with pytest.raises(ConfigError, match="aspect must be"):
        VideoScore(aspect="beauty")  # type: ignore[arg-type]
    assert lookup("verifier", "video_score").target is VideoScore


@pytest.mark.download
def test_published_weights_give_the_published_scores() -> None:
    """The authors print these scores of v1.1 for the example clip of their repository, `video1.mp4`.

    Needs the checkpoint in TTS_VISION_VIDEO_SCORE and that clip in TTS_VISION_VIDEO_SCORE_CLIP.
    """
    paths = [os.environ.get(f"TTS_VISION_VIDEO_SCORE{suffix}", "") for suffix in ("", "_CLIP")]
    if not all(paths) or not all(Path(path).exists() for path in paths):
        pytest.skip(
            "set TTS_VISION_VIDEO_SCORE and TTS_VISION_VIDEO_SCORE_CLIP to the checkpoint and the clip"
        )
    prompt = Prompt(
        "Near the Elephant Gate village, they approach the haunted house at night. Rajiv feels anxious, but "
        "Bhavesh encourages him. As they reach the house, a mysterious sound in the air adds to the suspense."
    )
    (score,) = VideoScore(checkpoint=paths[0]).score([read_media(Path(paths[1]))], [prompt])
    # bfloat16, and another version of every library
    assert list(score.parts.values()) == pytest.approx([2.328, 2.484, 2.562, 1.969, 2.594], abs=0.15)
