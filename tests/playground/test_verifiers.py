import math

import pytest
import torch
from PIL import Image

from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError
from tts_vision.pipelines.playground import weights_path, world
from tts_vision.pipelines.playground.world import Scene, Thing
from tts_vision.registry import lookup
from tts_vision.testing.contracts import DifferentiableVerifierContract
from tts_vision.verifiers.playground import PlaygroundClip

RED_LEFT_OF_BLUE = Scene((Thing("circle", "red", 16, 32, 10), Thing("star", "blue", 46, 32, 11)), 128)
BLUE_LEFT_OF_RED = Scene((Thing("circle", "blue", 16, 32, 10), Thing("star", "red", 46, 32, 11)), 128)


def image(scene: Scene) -> Image.Image:
    return Image.fromarray(world.render(scene))


def test_the_oracle_gives_one_to_right_images_and_less_to_wrong_ones() -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    prompt = Prompt("a red circle left of a blue star")
    right, wrong = oracle.score([image(RED_LEFT_OF_BLUE), image(BLUE_LEFT_OF_RED)], [prompt, prompt])
    assert right.value == 1.0 and right.reason is None
    assert 0.0 < wrong.value < 1.0 and "expected red circle" in (wrong.reason or "")
    assert wrong.parts == {"correct": 0.0, "fraction": wrong.value}
    assert oracle.checks_demands and right.satisfied is True and wrong.satisfied is False


def test_the_oracle_prefers_the_record_to_the_text() -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    record = world.parse_prompt("a blue star")
    assert oracle.score([image(RED_LEFT_OF_BLUE)], [Prompt("whatever", record)])[0].value == 1.0


@pytest.mark.parametrize(
    "prompt",
    [Prompt("a photo of a dog"), Prompt("a bench", {"include": [{"class": "bench", "count": 1}]})],
)
def test_the_oracle_refuses_what_the_world_does_not_have(prompt: Prompt) -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    with pytest.raises(ConfigError, match="knows the shapes"):
        oracle.score([image(RED_LEFT_OF_BLUE)], [prompt])


def test_the_clip_prefers_right_images_and_scores_each_by_itself() -> None:
    clip = lookup("verifier", "playground_clip").target()
    prompt = Prompt("a red circle left of a blue star")
    images = [image(RED_LEFT_OF_BLUE), image(BLUE_LEFT_OF_RED)]
    together = clip.score(images, [prompt, prompt])
    assert together[0].value > together[1].value
    assert clip.score(images[1:], [prompt])[0].value == pytest.approx(together[1].value, abs=1e-6)


def scenes(n: int) -> list[Image.Image]:
    """The playground's images of a circle that moves."""
    thing = Thing("star", "blue", 46, 32, 11)
    return [image(Scene((Thing("circle", "red", 12 + 3 * i, 32, 8), thing), 128)) for i in range(n)]


class TestPlaygroundClip(DifferentiableVerifierContract):
    @pytest.fixture(scope="class")
    def verifier(self) -> PlaygroundClip:  # type: ignore[override]
        return PlaygroundClip(device="cpu", batch_size=3)

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return scenes(4)

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("a red circle left of a blue star")

    @pytest.fixture
    def resize_tolerance(self) -> float:
        return 1e-6  # the playground draws at the size that its CLIP sees


@torch.no_grad()
def test_the_clip_is_the_cosine_of_image_and_prompt_in_any_batch() -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    folder = weights_path("clip")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    media = scenes(5)
    texts = ["a red circle left of a blue star", "two stars", "a red circle", "a blue star", "two stars"]
    expected = []
    for scene, text in zip(media, texts, strict=True):
        words = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
        pixels = processor([scene], return_tensors="pt").pixel_values
        output = model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels)
        expected.append(float((output.image_embeds * output.text_embeds).sum()))
    for batch_size in (1, 2, 5, 8):
        clip = PlaygroundClip(device="cpu", batch_size=batch_size)
        scores = clip.score(media, [Prompt(text) for text in texts])
        assert [score.value for score in scores] == pytest.approx(expected, abs=1e-6)


def test_the_clip_loads_late_and_reads_a_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = PlaygroundClip(device="cpu")
    assert not hasattr(clip, "_model")
    clip.load()
    encoded: list[int] = []
    encode = clip._model.get_text_features
    monkeypatch.setattr(
        clip._model,
        "get_text_features",
        lambda **words: encoded.append(len(words["input_ids"])) or encode(**words),
    )
    for _ in range(3):
        clip.score(scenes(9), [Prompt("two stars")] * 9)
    assert encoded == [1]


def test_the_clip_takes_long_prompts_and_odd_images() -> None:
    clip = PlaygroundClip(device="cpu")
    prompt = Prompt("two red circles and " * 30)
    (scene,) = scenes(1)
    media = [scene.convert("RGBA"), scene.convert("L"), Image.new("RGB", (1, 1)), scene]
    scores = clip.score(media, [prompt] * 4)
    assert scores[0].value == pytest.approx(scores[3].value, abs=1e-6)
    assert all(-1 <= score.value <= 1 for score in scores)
    (clipped,) = clip.score([Video(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))], [prompt])
    assert math.isnan(clipped.value) and "scores images but got a clip" in (clipped.reason or "")
    assert clip.score([], []) == []
