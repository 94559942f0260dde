from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import CapabilityError, ConfigError, VerifierError
from tts_vision.resolve import find_verifier, load_verifier
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media, Score
from tts_vision.verifier import ALONE, Asked, FunctionVerifier, Verifier
from tts_vision.verifiers.frame_mean import FrameMean
from tts_vision.verifiers.jpeg import JpegIncompressibility
from tts_vision.verifiers.last_frame import LastFrame

PROMPT = Prompt("two red circles")


class Level(Verifier):
    """The first pixel of an image; black ones cannot be scored."""

    name = "level"
    accepts = frozenset({"image"})

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        values = [int(np.asarray(sample)[0, 0, 0]) for sample in media]
        self.seen += [(value, prompt.text) for value, prompt in zip(values, prompts, strict=True)]
        return [Score(value=value) if value else Score.unscored("it is black") for value in values]


def grey(*levels: int) -> Video:
    return Video(torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 5, 3))


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self) -> FrameMean:
        return FrameMean([JpegIncompressibility()], frames=3)

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=1)[0], *clips(2, frames=8, seed=1)]


def test_is_the_mean_of_evenly_spaced_frames() -> None:
    member = Level()
    verifier = FrameMean([member], frames=3)
    assert verifier.name == "frame_mean(level)" and verifier.accepts == {"video"}
    scores = verifier.score([grey(10, 20, 30, 40, 50), grey(7, 9)], [PROMPT, Prompt("a dog")])
    assert [score.value for score in scores] == [30.0, 8.0]
    assert scores[0].parts == {"mean": 30.0, "min": 10.0}
    # one call of the member, each frame with the prompt of its clip; a short clip repeats nothing
    assert member.seen == [
        (10, PROMPT.text),
        (30, PROMPT.text),
        (50, PROMPT.text),
        (7, "a dog"),
        (9, "a dog"),
    ]


def test_frames_without_a_score_are_left_out() -> None:
    some, none, one = FrameMean([Level()]).score([grey(10, 0, 30), grey(0, 0), grey(5)], [PROMPT] * 3)
    assert (some.value, some.parts["min"]) == (20.0, 10.0)
    assert math.isnan(none.value) and none.reason == "no frame could be scored: it is black"
    assert one.value == 5.0


def test_what_is_no_clip_is_unscored_and_spoils_nothing() -> None:
    empty = Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8))
    scores = FrameMean([Level()]).score([some_images(1)[0], grey(8, 6), empty], [PROMPT] * 3)
    assert [math.isnan(score.value) for score in scores] == [True, False, True]
    assert "got an image" in (scores[0].reason or "") and "(0, 8, 8, 3)" in (scores[2].reason or "")
    assert scores[1].value == 7.0
    member = Level()
    assert FrameMean([member]).score([empty], [PROMPT])[0].reason and not member.seen
    assert FrameMean([member]).score([], []) == []


def test_a_member_that_loses_frames_is_reported() -> None:
    member = FunctionVerifier(lambda media, prompts: [], "lossy")
    with pytest.raises(
        VerifierError, match=r"'lossy' must return one score per frame, 2 here, .* returned 0"
    ):
        FrameMean([member]).score([grey(1, 2)], [PROMPT])


def test_loads_and_counts_its_member() -> None:
    loaded: list[bool] = []

    class Counted(Level):
        def load(self) -> None:
            loaded.append(True)

        def calls(self, n: int) -> dict[str, int]:
            return {"counted": 2 * n}

    verifier = FrameMean([Counted()], frames=4)
    verifier.load()
    assert loaded == [True] and verifier.calls(3) == {"counted": 24}
    assert FrameMean([Level()], frames=4).calls(3) == {"level": 12}


def test_what_it_cannot_be_made_of_is_refused() -> None:
    pooled, clip_only = Level(), Level()
    pooled.name, pooled.settles = "pooled", True
    clip_only.name, clip_only.accepts = "clips", frozenset({"video"})
    for members, frames, message in [
        ([], 8, "made of one verifier but got none"),
        ([Level(), Level()], 8, "made of one verifier but got level, level"),
        ([clip_only], 8, "must score images but 'clips' scores video"),
        ([pooled], 8, "'pooled' compares"),
        ([Level()], 0, "frames must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            FrameMean(members, frames=frames)


def test_is_named_with_its_member() -> None:
    verifier = load_verifier(find_verifier("frame_mean(jpeg_compressibility):frames=2"))
    assert isinstance(verifier, FrameMean) and verifier.frames == 2
    video = clips(1)[0]
    sizes = [s.value for s in verifier.member.score([some_images(1)[0]], [PROMPT])]
    still = Video(video.frames[:1].repeat(3, 1, 1, 1))
    assert verifier.score([still], [PROMPT])[0].value == pytest.approx(sizes[0])
    with pytest.raises(ConfigError, match="is made of other verifiers"):
        find_verifier("frame_mean")


class Smooth(Level):
    """A member that gives gradients."""

    differentiable = True

    def rewards(self, pixels: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        lengths = torch.tensor([len(prompt.text) for prompt in prompts])
        return pixels.square().mean((1, 2, 3)) * lengths


def test_gives_gradients_where_its_member_does() -> None:
    without = FrameMean([Level()])
    assert not without.differentiable
    with pytest.raises(CapabilityError, match="'level' has none"):
        without.rewards(torch.rand(1, 2, 3, 4, 4), [PROMPT])
    verifier = FrameMean([Smooth()], frames=3)
    assert verifier.differentiable
    pixels = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rewards = verifier.rewards(pixels, [PROMPT, Prompt("a dog")])
    squares = pixels.detach()[:, [0, 2, 4]].square().mean((1, 2, 3, 4))
    assert torch.allclose(rewards, squares * torch.tensor([len(PROMPT.text), 5]))
    (gradient,) = torch.autograd.grad(rewards[1], pixels)
    assert not gradient[0].any() and not gradient[1, [1, 3]].any() and gradient[1, [0, 2, 4]].all()


class TestContractOfTheLastFrame(VerifierContract):
    @pytest.fixture
    def verifier(self) -> LastFrame:
        return LastFrame([JpegIncompressibility()])

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=1)[0], *clips(2, frames=8, seed=1)]


def test_the_last_frame_alone_is_scored() -> None:
    member = Level()
    verifier = LastFrame([member])
    assert verifier.name == "last_frame(level)" and verifier.calls(3) == {"level": 3}
    scores = verifier.score([grey(10, 20, 30), grey(7), grey(5, 0)], [PROMPT] * 3)
    assert [score.value for score in scores[:2]] == [30.0, 7.0] and math.isnan(scores[2].value)
    assert [value for value, _ in member.seen] == [30, 7, 0]
    with pytest.raises(ConfigError, match=r"last_frame is made of one verifier but got none; .*last_frame"):
        LastFrame([])
    with pytest.raises(ConfigError, match=r"member of last_frame must score images .* without last_frame"):
        LastFrame([FrameMean([Level()])])
