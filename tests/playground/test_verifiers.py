import pytest
from PIL import Image

from tts_vision import Prompt
from tts_vision.errors import ConfigError
from tts_vision.pipelines.playground import world
from tts_vision.pipelines.playground.world import Scene, Thing
from tts_vision.registry import lookup

RED_LEFT_OF_BLUE = Scene((Thing("circle", "red", 16, 32, 10), Thing("star", "blue", 46, 32, 11)), 128)
BLUE_LEFT_OF_RED = Scene((Thing("circle", "blue", 16, 32, 10), Thing("star", "red", 46, 32, 11)), 128)


def picture(scene: Scene) -> Image.Image:
    return Image.fromarray(world.render(scene))


def test_the_oracle_gives_one_to_right_pictures_and_less_to_wrong_ones() -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    prompt = Prompt("a red circle left of a blue star")
    right, wrong = oracle.score([picture(RED_LEFT_OF_BLUE), picture(BLUE_LEFT_OF_RED)], [prompt, prompt])
    assert right.value == 1.0 and right.reason is None
    assert 0.0 < wrong.value < 1.0 and "expected red circle" in (wrong.reason or "")
    assert wrong.parts == {"correct": 0.0, "fraction": wrong.value}


def test_the_oracle_prefers_the_record_to_the_text() -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    record = world.parse_prompt("a blue star")
    assert oracle.score([picture(RED_LEFT_OF_BLUE)], [Prompt("whatever", record)])[0].value == 1.0


@pytest.mark.parametrize(
    "prompt",
    [Prompt("a photo of a dog"), Prompt("a bench", {"include": [{"class": "bench", "count": 1}]})],
)
def test_the_oracle_refuses_what_the_world_does_not_have(prompt: Prompt) -> None:
    oracle = lookup("verifier", "playground_oracle").target()
    with pytest.raises(ConfigError, match="knows the shapes"):
        oracle.score([picture(RED_LEFT_OF_BLUE)], [prompt])


def test_the_clip_prefers_right_pictures_and_scores_each_by_itself() -> None:
    clip = lookup("verifier", "playground_clip").target()
    prompt = Prompt("a red circle left of a blue star")
    pictures = [picture(RED_LEFT_OF_BLUE), picture(BLUE_LEFT_OF_RED)]
    together = clip.score(pictures, [prompt, prompt])
    assert together[0].value > together[1].value
    assert clip.score(pictures[1:], [prompt])[0].value == together[1].value
