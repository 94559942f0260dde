import io
import math

import numpy as np
import pytest
from PIL import Image

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers.jpeg import JpegCompressibility, JpegIncompressibility

PROMPT = Prompt("two red circles")


class TestContract(VerifierContract):
    @pytest.fixture(params=[JpegCompressibility, JpegIncompressibility])
    def verifier(self, request: pytest.FixtureRequest) -> JpegCompressibility | JpegIncompressibility:
        return request.param()

    @pytest.fixture
    def media(self) -> list[Media]:
        return list(some_images(4))


def kilobytes(image: Image.Image, **settings: int) -> float:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return len(buffer.getvalue()) / 1000


def test_are_the_bytes_of_pillow_at_quality_95() -> None:
    media = some_images(5)
    less, more = (v.score(media, [PROMPT] * 5) for v in (JpegCompressibility(), JpegIncompressibility()))
    for image, small, large in zip(media, less, more):
        assert large.value == kilobytes(image, quality=95) == -small.value
        assert large.value != kilobytes(image)  # Pillow's own quality is lower


def test_noise_compresses_worse_than_a_plain_image() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    plain = Image.new("RGB", (40, 40), "red")
    best, worst = JpegCompressibility().score([plain, noise], [PROMPT] * 2)
    assert best.value > worst.value
    worst, best = JpegIncompressibility().score([plain, noise], [PROMPT] * 2)
    assert best.value > worst.value


def test_odd_images_are_scored_and_what_is_none_is_not() -> None:
    half = Image.new("RGBA", (30, 20), (255, 0, 0, 128))
    media = [
        half,
        some_images(1)[0].convert("L"),
        Image.new("RGB", (1, 1), "red"),
        clips(1)[0],
        Image.new("RGB", (65536, 1)),  # JPEG counts to 65535
        some_images(1)[0],
    ]
    scores = JpegIncompressibility().score(media, [PROMPT] * len(media))
    assert [math.isnan(score.value) for score in scores] == [False] * 3 + [True, True, False]
    on_white = Image.alpha_composite(Image.new("RGBA", half.size, "white"), half).convert("RGB")
    assert scores[0].value == kilobytes(on_white, quality=95)
    assert scores[1].value == kilobytes(some_images(1)[0].convert("L").convert("RGB"), quality=95)
    assert "frame_mean(jpeg_incompressibility)" in (scores[3].reason or "")
    assert "cannot be a JPEG" in (scores[4].reason or "")
    assert scores[5].value == kilobytes(some_images(1)[0], quality=95)
    assert JpegCompressibility().score([], []) == []


def test_are_registered() -> None:
    assert lookup("verifier", "jpeg_compressibility").target is JpegCompressibility
    assert lookup("verifier", "jpeg_incompressibility").target is JpegIncompressibility
