"""Images among a pipeline's arguments: in the folder of a search, for its resume and its replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tts_vision
from tiny_pipelines import TINY
from tts_vision.config import RunConfig, live_name
from tts_vision.errors import ConfigError
from tts_vision.folders import read_config
from tts_vision.inputs import check_inputs, with_inputs
from tts_vision.results import load_result

ENTRY = TINY["stable_diffusion_img2img"]


def photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def search(folder: Path, image: Any, **more: Any) -> Any:
    kwargs = {**ENTRY.kwargs, "image": image, "num_inference_steps": 4}
    return tts_vision.search(
        ENTRY.build(),
        "two red circles",
        verifier=brightness,
        budget="2x",
        pipeline_kwargs=kwargs,
        output=folder,
        **more,
    )


def test_image_to_image_is_reopened_resumed_and_replayed_from_its_folder(tmp_path: Path) -> None:
    folder, image = tmp_path / "run", photo()
    result = search(folder, image)
    assert load_result(folder).best.uid == result.best.uid
    replay = tts_vision.replay(folder, pipe=ENTRY.build(), verifier=brightness)
    assert replay.max_difference <= 1
    assert search(folder, image, resume=True).best.uid == result.best.uid
    with pytest.raises(ConfigError, match="image"):
        search(folder, photo(1), resume=True)


def test_the_image_of_a_folder_is_found_by_its_content(tmp_path: Path) -> None:
    folder, image = tmp_path / "run", photo()
    image.save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as opened:
        assert live_name(opened) == live_name(image) != live_name(photo(1)), "whatever it was read from"
        search(folder, opened)
    config = read_config(folder)
    assert config.sampler_options.pipeline_kwargs["image"] == live_name(image)
    with pytest.raises(ConfigError, match="image of the pipeline must be at hand but got '<Image"):
        check_inputs(config)
    found = with_inputs(config, folder)
    assert np.array_equal(found.sampler_options.pipeline_kwargs["image"], image)
    assert found.hash == config.hash
    check_inputs(found)
    (file,) = (folder / "conditions").iterdir()
    file.write_bytes(b"damaged")
    assert with_inputs(config, folder) == config, "and it is refused"


def test_objects_that_a_folder_cannot_hold_are_named(tmp_path: Path) -> None:
    search(tmp_path / "run", photo().convert("CMYK").convert("RGB"))
    options = {"pipeline_kwargs": {"image": "<Image 01234567>"}}
    config = RunConfig(prompt="a", sampler_options=options, verifier="playground_clip")
    assert with_inputs(config, tmp_path / "run") == config
    with pytest.raises(ConfigError, match=r"only Python can give but got 'photo.png'"):
        RunConfig(prompt="a", sampler_options={"pipeline_kwargs": {"image": "photo.png"}})
