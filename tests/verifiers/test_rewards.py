"""The base of image rewards: threads, copies, and the texts that are remembered."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from samples import clips, some_images
from tts_vision.memory import out_of_memory
from tts_vision.types import Media, Prompt
from tts_vision.verifiers._cache import Recent
from tts_vision.verifiers._rewards import PixelReward, TextCache, fitted_on, raw_pixels
from tts_vision.verifiers._threads import preprocessing_threads

PROMPT = Prompt("x")


class Mean(PixelReward):
    """The mean of the pixels; remembers which threads preprocessed them, and how many samples at once."""

    name = "mean"

    def __init__(self, **settings: Any) -> None:
        super().__init__(device="cpu", **settings)
        self.threads: set[str] = set()
        self.sizes: list[int] = []

    def _load(self) -> None:
        pass

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        self.threads.add(threading.current_thread().name)
        return torch.cat([self._fit(raw_pixels(sample)) for sample in samples])

    def _fit(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(pixels, (4, 4), mode="bilinear", antialias=True)

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        self.sizes.append(len(pixels))
        return pixels.mean((1, 2, 3))


@pytest.mark.parametrize("own", [False, True])
def test_images_are_preprocessed_in_threads_and_scored_in_batches(own: bool) -> None:
    verifier = Mean(batch_size=3)
    verifier.resizes_tensors = own
    media = some_images(7)
    found = [score.value for score in verifier.score(media, [PROMPT] * 7)]
    assert found == pytest.approx([np.asarray(image).mean() / 255 for image in media], abs=1e-2)
    assert verifier.sizes == [3, 3, 1]
    assert all(name.startswith("preprocess") for name in verifier.threads)


def test_a_sample_that_cannot_be_used_costs_only_itself() -> None:
    media: list[Media] = [*some_images(2), clips(1)[0], Image.new("RGB", (0, 3)), *some_images(2, seed=1)]
    scores = Mean(batch_size=4).score(media, [PROMPT] * 6)
    assert [math.isnan(score.value) for score in scores] == [False, False, True, True, False, False]
    assert "got a clip" in (scores[2].reason or "") and "0x3" in (scores[3].reason or "")


def test_a_full_memory_halves_batches_without_preprocessing_again() -> None:
    class Small(Mean):
        preprocessed = 0

        def _preprocess(self, samples: list[Image.Image]) -> Tensor:
            self.preprocessed += 1
            return super()._preprocess(samples)

        def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
            if len(pixels) > 2:
                raise torch.OutOfMemoryError("full")
            return super()._reward(pixels, texts)

    verifier = Small(batch_size=8)
    scores = verifier.score(some_images(8), [PROMPT] * 8)
    assert not any(math.isnan(score.value) for score in scores)
    assert verifier.batch_size == 2 and verifier.preprocessed == 8


def test_threads_are_made_anew_after_a_fork() -> None:
    threads = preprocessing_threads()
    assert preprocessing_threads() is threads and preprocessing_threads(True) is not threads
    preprocessing_threads.cache_clear()  # as in a child
    assert preprocessing_threads() is not threads


def test_bytes_become_numbers_once() -> None:
    image = some_images(1)[0]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(raw_pixels(image), expected) and raw_pixels(image).is_contiguous()
    assert torch.equal(fitted_on(torch.device("cpu"), image, lambda x: 2 * x), 2 * expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_tensors_are_resized_on_the_accelerator() -> None:
    image, where = some_images(1)[0], []

    def fit(pixels: Tensor) -> Tensor:
        where.append(pixels.device.type)
        return torch.nn.functional.interpolate(pixels, (9, 9), mode="bicubic", antialias=True)

    there, here = (fitted_on(torch.device(name), image, fit) for name in ("cuda", "cpu"))
    assert where == ["cuda", "cpu"] and there.device.type == "cpu"
    assert torch.allclose(there, here, atol=1e-5)


def test_an_accelerator_without_room_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.verifiers import _rewards

    def full(image: Image.Image, device: Any = "cpu") -> Tensor:
        if str(device) != "cpu":
            raise torch.OutOfMemoryError("full")
        return raw_pixels(image)

    monkeypatch.setattr(_rewards, "raw_pixels", full)
    image = some_images(1)[0]
    assert out_of_memory(torch.OutOfMemoryError("full"))
    assert torch.equal(fitted_on(torch.device("cuda"), image, lambda x: x), raw_pixels(image))


# Texts


def test_the_text_that_was_used_least_recently_is_forgotten() -> None:
    encoded: list[list[str]] = []

    def encode(texts: list[str]) -> Tensor:
        encoded.append(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    texts = TextCache(encode, capacity=2)
    assert texts(["a", "bb", "a"]).tolist() == [[1], [2], [1]]
    texts(["a"])  # now bb is the oldest
    texts(["ccc"])
    assert encoded == [["a", "bb"], ["ccc"]]
    assert texts(["a", "ccc"]).tolist() == [[1], [3]] and len(encoded) == 2
    texts(["bb"])
    assert encoded[2:] == [["bb"]]
    many = [str(i) * (i + 1) for i in range(5)]  # more than it can hold
    assert texts(many).tolist() == [[1], [2], [3], [4], [5]] and encoded[-1] == many
    assert len(texts._known) == 2


def test_a_dictionary_of_the_entries_used_last() -> None:
    recent: Recent[str, int] = Recent(2)
    recent["a"], recent["b"] = 1, 2
    assert recent["a"] == 1
    recent["c"] = 3
    assert list(recent.items()) == [("a", 1), ("c", 3)]
    recent["a"] = 4
    recent["d"] = 5
    assert dict(recent) == {"a": 4, "d": 5}
    with pytest.raises(KeyError):
        recent["b"]
