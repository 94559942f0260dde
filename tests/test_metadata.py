"""A file says how it was made: text of PNG, EXIF, tags of clips, and the line that web UIs read."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tts_vision
from tiny_pipelines import TINY, with_scheduler
from toy_plugins import MODEL, VERIFIER
from tts_vision import load_result, search
from tts_vision.condition import Condition
from tts_vision.config import RunConfig, SamplerOptions
from tts_vision.media import pixels, read_media, read_text
from tts_vision.metadata import from_seed, sample_text
from tts_vision.pipelines.bundled import load_playground
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.rng import row_seed
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Birth, Family
from tts_vision.types import Media, Score, Video

PROMPT = "two red circles"
CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0, "negative_prompt": "ugly"}
# as the web UI of AUTOMATIC1111 reads it: pairs of a key and a value, which is in quotes where it has commas
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIF, USER_COMMENT = 0x8769, 0x9286


def brightness(media: list[Media], prompts: list[str]) -> list[float]:
    return [float(pixels(m).mean()) for m in media]


def quiet(name: str = "stable_diffusion") -> Any:
    pipe = TINY[name].build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parsed(parameters: str) -> dict[str, str]:
    """The `parameters` as a web UI reads them."""
    *lines, last = parameters.strip().split("\n")
    pairs = PAIR.findall(last)
    assert len(pairs) >= 3, "fewer are taken for a part of the prompt"
    prompt = [line for line in lines if not line.startswith("Negative prompt:")]
    negative = [line[16:].strip() for line in lines if line.startswith("Negative prompt:")]
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative), **values}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("metadata") / "out"
    search(
        quiet(),
        PROMPT,
        verifier=brightness,
        budget="4x",
        seed=3,
        pipeline_kwargs={**CALL, "callback_on_step_end": None},
        output=root,
    )
    return root


def test_a_png_says_how_it_was_made(folder: Path) -> None:
    result = load_result(folder)
    for candidate in result.population:
        assert candidate.path is not None
        with Image.open(candidate.path) as image:
            text: dict[Any, Any] = dict(image.info)
        assert text["prompt"] == PROMPT and text["negative_prompt"] == "ugly"
        assert text["seed"] == "3" and int(text["row_seed"]) == row_seed(3, candidate.uid)
        assert (text["steps"], text["guidance_scale"], text["size"]) == ("4", "4.0", "16x16")
        assert (text["sampler"], text["scheduler"]) == ("StableDiffusionPipeline", "DDIMScheduler")
        assert json.loads(text["scheduler_config"])["beta_schedule"] == "scaled_linear"
        assert text["model"] == "<StableDiffusionPipeline>"
        assert (text["dtype"], text["device"]) == ("float32", "cpu")
        versions = json.loads(text["versions"])
        assert set(versions) == {"tts-vision", "torch", "diffusers"} and all(versions.values())
        assert versions["tts-vision"] == tts_vision.__version__
        assert json.loads(text["configuration"]) == result.config.content
        assert json.loads(text["pipeline_kwargs"]) == {**CALL, "callback_on_step_end": None}
        assert float(text["score"]) == candidate.score.value
    assert (folder / "best.png").read_bytes() == result.population[0].path.read_bytes()  # type: ignore[union-attr]


def test_a_live_pipeline_has_a_fingerprint(folder: Path, tmp_path: Path) -> None:
    known = read_text(folder / "best.png")["model_fingerprint"]
    assert re.fullmatch("[0-9a-f]{12}", known)
    settings: dict[str, Any] = {"verifier": brightness, "budget": "1x", "pipeline_kwargs": CALL}
    search(quiet(), PROMPT, output=tmp_path / "same", **settings)
    other = quiet()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(0.5)
    search(other, PROMPT, output=tmp_path / "other", **settings)
    same, changed = (read_text(tmp_path / n / "best.png")["model_fingerprint"] for n in ("same", "other"))
    assert known == same != changed
    search("playground", "a star", budget="1x", output=tmp_path / "named")
    assert "model_fingerprint" not in read_text(tmp_path / "named" / "best.png")


def test_web_uis_read_it(folder: Path) -> None:
    text = read_text(folder / "best.png")
    found = parsed(text["parameters"])
    assert found["Prompt"] == PROMPT and found["Negative prompt"] == "ugly"
    expected = {
        "Steps": "4",
        "Sampler": "DDIM",
        "CFG scale": "4.0",
        "Seed": text["row_seed"],
        "Size": "16x16",
        "RNG": "CPU",
        "Version": f"tts-vision {tts_vision.__version__}",
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("scheduler", "options", "sampler", "schedule"),
    [
        ("euler", {}, "Euler", None),
        ("euler", {"use_karras_sigmas": True}, "Euler", "Karras"),
        ("euler_a", {}, "Euler a", None),
        ("dpm++", {"use_exponential_sigmas": True}, "DPM++ 2M", "Exponential"),
        ("dpm++sde", {}, "DPM++ 2M SDE", None),
        ("unipc", {}, "UniPC", None),
        ("ddpm", {}, "DDPMScheduler", None),
    ],
)
def test_names_of_samplers_are_those_of_web_uis(
    scheduler: str, options: dict[str, Any], sampler: str, schedule: str | None
) -> None:
    pipe = with_scheduler(quiet(), scheduler)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    result = search(pipe, PROMPT, verifier=brightness, budget="1x", pipeline_kwargs=CALL)
    found = parsed(result.best.text["parameters"])
    assert (found["Sampler"], found.get("Schedule type")) == (sampler, schedule)


def test_values_with_commas_and_several_lines_are_read_back() -> None:
    family = Family()
    family.add(Birth(op=0, uids=(0,), move={"name": "init"}, seeds=(5,)))
    config = RunConfig(prompt="a star,\nNegative space: none", model="a/b: c, d", verifier="v", seed=5)
    facts = {"plain": True, "steps": 3, "scheduler": "LCMScheduler", "negative_prompt": "x, y: z"}
    image = Image.new("RGB", (8, 6))
    text = sample_text(config, family, 0, Score(value=1.0), facts=facts, media=image)
    found = parsed(text["parameters"])
    assert found["Prompt"] == config.prompt and found["Negative prompt"] == "x, y: z"
    assert (found["Model"], found["Size"], found["Seed"]) == ("b: c, d", "8x6", "5")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_saved_copies_keep_the_facts(suffix: str, folder: Path, tmp_path: Path) -> None:
    stored = read_text(folder / "best.png")
    for result in (load_result(folder), search(quiet(), PROMPT, verifier=brightness, budget="1x", seed=3)):
        path = tmp_path / f"a{suffix}"
        result.best.save(path)
        found = read_text(path)
        assert found["prompt"] == PROMPT and found["seed"] == "3" and "parameters" in found
        with Image.open(path) as image:
            assert image.getexif().get_ifd(EXIF)[USER_COMMENT][8:].decode("utf-16-be") == found["parameters"]
    load_result(folder).best.save(tmp_path / "X.PNG")
    assert read_text(tmp_path / "X.PNG") == stored
    with pytest.warns(UserWarning, match="A BMP file has no room"):
        load_result(folder).best.save(tmp_path / "a.bmp")


def test_a_result_in_memory_and_one_in_a_folder_say_the_same(folder: Path) -> None:
    settings: dict[str, Any] = {**CALL, "callback_on_step_end": None}
    fresh = search(quiet(), PROMPT, verifier=brightness, budget="4x", seed=3, pipeline_kwargs=settings)
    stored = load_result(folder)
    for a, b in zip(fresh.population, stored.population, strict=True):
        # a live pipeline's fingerprint is taken where a folder may be resumed with another one
        assert a.text == {key: value for key, value in b.text.items() if key != "model_fingerprint"}
    assert fresh.best.facts["steps"] == 4


@pytest.mark.parametrize("name", ["best.png", "result.json"])
def test_identical_searches_write_identical_bytes(name: str, tmp_path: Path) -> None:
    for run in ("a", "b"):
        search(
            quiet(),
            PROMPT,
            verifier=brightness,
            budget="2x",
            seed=1,
            pipeline_kwargs=CALL,
            output=tmp_path / run,
        )
    if name == "best.png":
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    else:
        first, second = (json.loads((tmp_path / run / name).read_text()) for run in ("a", "b"))
        assert {**first, "timing": None} == {**second, "timing": None}


def test_a_resumed_search_writes_the_same_facts(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(context: Any, event: Any) -> None:
        if event.what == "score":
            raise Killed

    settings: dict[str, Any] = {"verifier": brightness, "budget": "2x", "seed": 1, "pipeline_kwargs": CALL}
    whole = search(quiet(), PROMPT, output=tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        search(quiet(), PROMPT, output=tmp_path / "cut", progress=stop, **settings)
    resumed = search(quiet(), PROMPT, output=tmp_path / "cut", resume=True, **settings)
    assert [c.text for c in resumed.population] == [c.text for c in whole.population]
    assert (tmp_path / "cut" / "best.png").read_bytes() == (tmp_path / "whole" / "best.png").read_bytes()


# Only what a plain call makes again has the line of web UIs


@pytest.mark.filterwarnings("ignore")
def test_forked_and_moved_samples_have_no_line_for_web_uis() -> None:
    result = search(
        quiet(), PROMPT, algorithm="evosearch", verifier=brightness, budget="8x", seed=2, pipeline_kwargs=CALL
    )
    born = Family()
    for event in result.trace:
        born.add(event)
    for candidate in result.population:
        # evosearch on a diffusion model takes stochastic steps by default
        assert "parameters" not in candidate.text
        assert ("row_seed" in candidate.text) == from_seed(born, candidate.uid)
    assert result.best.text["stochastic"].startswith("ddim, eta=")


def test_stochastic_samples_have_no_line_for_web_uis_but_native_noise_does() -> None:
    own = search(
        quiet(),
        PROMPT,
        verifier=brightness,
        budget="1x",
        sampler_options=SamplerOptions(stochastic=True, pipeline_kwargs=CALL),
    )
    assert "parameters" not in own.best.text and own.best.text["row_seed"] == "0"
    pipe = with_scheduler(quiet(), "euler_a")
    native = search(pipe, PROMPT, verifier=brightness, budget="1x", seed=4, pipeline_kwargs=CALL)
    seed = int(parsed(native.best.text["parameters"])["Seed"])
    again = pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(seed), **CALL).images[0]
    assert np.array_equal(pixels(again), pixels(native.best.load()))


def test_a_preview_says_that_it_is_one() -> None:
    def previews_only(ctx: Any) -> Any:
        state = ctx.advance(ctx.init(2), 2)
        ctx.score(state)
        return ctx.finish(state)

    result = search(
        GaussianMixtureSampler(num_steps=6),
        PROMPT,
        algorithm=previews_only,
        verifier=TargetReward(),
        budget="nfe=8",
    )
    assert result.is_preview
    assert result.best.text["preview"] == "unfinished, at step 2"
    assert "parameters" not in result.best.text


def test_a_sampler_without_facts_has_name_and_steps(tmp_path: Path) -> None:
    result = search(MODEL, PROMPT, verifier=VERIFIER, budget="2x", output=tmp_path / "out")
    text = read_text(tmp_path / "out" / "best.png")
    assert (text["sampler"], text["steps"], text["size"]) == ("gaussian_mixture", "6", "16x16")
    assert "parameters" not in text and "scheduler" not in text
    assert text["model"] == MODEL and result.best.text == text


def test_the_facts_are_those_of_the_condition() -> None:
    sampler = DiffusersSampler(quiet(), options=SamplerOptions(pipeline_kwargs=CALL))
    condition = Condition("a star", negative_text="blurry", overrides={"guidance_scale": 1.5})
    facts = sampler.facts(condition)
    assert (facts["negative_prompt"], facts["guidance_scale"]) == ("blurry", 1.5)
    assert facts["pipeline_kwargs"]["guidance_scale"] == 1.5 and facts["plain"] is True
    assert "prompt" not in facts["pipeline_kwargs"]
    assert json.loads(json.dumps(facts)) == facts
    # what JSON cannot hold is left out
    pipe = quiet("stable_diffusion_img2img")
    call = {**TINY["stable_diffusion_img2img"].kwargs, "strength": 0.5, "num_inference_steps": 4}
    facts = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call)).facts(Condition("a"))
    assert "image" not in facts["pipeline_kwargs"] and facts["pipeline_kwargs"]["strength"] == 0.5


def test_of_an_autoregressive_model() -> None:
    result = search("playground-var", "a red circle", budget="1x")
    text = result.best.text
    assert text["sampler"] and int(text["steps"]) == 6 and text["size"] == "64x64"
    assert float(text["guidance_scale"]) >= 0 and "tau" in text
    assert "parameters" not in text, "no web UI draws with this model"


def test_clips_say_it_in_their_tags(tmp_path: Path) -> None:
    pytest.importorskip("av")
    tiny = TINY["ltx"]
    call = {**tiny.kwargs, "num_inference_steps": 3}
    root = tmp_path / "out"
    result = search(quiet("ltx"), PROMPT, verifier=brightness, budget="2x", pipeline_kwargs=call, output=root)
    assert sorted(path.suffix for path in (root / "population").iterdir()) == [".mkv", ".mkv", ".mp4", ".mp4"]
    for path in (root / "best.mkv", root / "best.mp4"):
        text = read_text(path)
        assert text["prompt"] == PROMPT and text["steps"] == "3" and "versions" in text
        assert int(text["frames"]) == call["num_frames"] and "fps" in text
        assert "parameters" not in text
    loaded = load_result(root)
    assert loaded.best.path is not None and loaded.best.path.suffix == ".mkv"
    assert torch.equal(loaded.best.load().frames, result.best.load().frames)  # type: ignore[union-attr]
    for name in ("copy.MP4", "copy.mkv"):
        loaded.best.save(tmp_path / name)
        assert read_text(tmp_path / name)["prompt"] == PROMPT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.best.save(tmp_path / "copy.webp")
    assert read_text(tmp_path / "copy.webp")["prompt"] == PROMPT


# What is judged is what is stored


class Odd(GaussianMixtureSampler):
    """The toy sampler with noisy clips of odd sides."""

    modality = "video"

    def decode(self, state: Any) -> list[Media]:
        return [
            Video(
                torch.randint(
                    0, 256, (5, 15, 17, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(uid)
                ),
                fps=23.976,
            )
            for uid in state.uids
        ]


def test_guide_holdout_and_everybody_later_see_the_same_clip(tmp_path: Path) -> None:
    pytest.importorskip("av")
    seen: dict[str, dict[float, bytes]] = {"guide": {}, "holdout": {}}

    def looking(who: str) -> Any:
        def look(media: list[Video], prompts: list[str]) -> list[float]:
            found = [float(m.frames.float().std()) for m in media]
            seen[who].update(
                {v: m.frames.numpy().tobytes() + str(m.fps).encode() for v, m in zip(found, media)}
            )
            return found

        return look

    result = search(
        Odd(num_steps=3),
        PROMPT,
        verifier=looking("guide"),
        holdout_verifier=looking("holdout"),
        budget="3x",
        output=tmp_path / "out",
    )
    assert seen["guide"] == seen["holdout"] and len(seen["guide"]) == 3
    assert result.holdout is not None and result.holdout.best == result.best.score.value
    for candidate in load_result(tmp_path / "out").population:
        clip = candidate.load()
        assert isinstance(clip, Video) and clip.frames.shape == (5, 15, 17, 3)
        assert clip.frames.numpy().tobytes() + b"23.976" == seen["guide"][candidate.score.value]
        assert [path.suffix for path in candidate.files] == [".mkv", ".mp4"]
        shown = read_media(candidate.files[1])
        assert isinstance(shown, Video) and shown.frames.shape == (5, 16, 18, 3)


def test_an_image_of_any_mode_is_judged_as_it_is_stored(tmp_path: Path) -> None:
    class Modes(GaussianMixtureSampler):
        def decode(self, state: Any) -> list[Media]:
            modes = ("RGBA", "L", "CMYK", "RGB")
            return [m.convert(modes[uid % 4]) for m, uid in zip(super().decode(state), state.uids)]

    judged: list[tuple[str, bytes]] = []

    def look(media: list[Image.Image], prompts: list[str]) -> list[float]:
        judged.extend((m.mode, m.tobytes()) for m in media)
        return [float(i) for i in range(len(media))]

    search(Modes(num_steps=3), PROMPT, verifier=look, budget="4x", output=tmp_path / "out")
    stored = [c.load() for c in sorted(load_result(tmp_path / "out").population, key=lambda c: c.uid)]
    assert [(m.mode, m.tobytes()) for m in stored] == judged  # type: ignore[union-attr]
    assert [mode for mode, _ in judged] == ["RGBA", "L", "RGB", "RGB"]


# The line of the documentation


@pytest.mark.parametrize("model", ["bundled", "stable_diffusion"])
def test_the_row_seed_makes_the_winner_again_as_the_page_says(model: str) -> None:
    """With the pipeline of the bundled model, whose search has settings of its own."""
    page = Path(__file__).parents[1] / "docs" / "guides" / "your-pipeline.md"
    (code,) = [block for block in BLOCK.findall(page.read_text()) if "row_seed" in block]
    pipe = load_playground() if model == "bundled" else quiet(model)
    pipe.set_progress_bar_config(disable=True)

    def redness(images: list[Any], prompts: list[str]) -> list[float]:
        return [float(np.asarray(image)[..., 0].mean()) / 255 for image in images]

    names: dict[str, Any] = {"tts_vision": tts_vision, "np": np, "pipe": pipe, "redness": redness}
    exec(compile(code, str(page), "exec"), names)
    assert names["best"].text["row_seed"] and names["same"].size == names["best"].load().size


def test_a_search_by_name_is_made_again_by_its_pipeline() -> None:
    best = search("playground", "a blue star", budget="3x", seed=5).best
    pipe = load_playground()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(int(best.text["row_seed"]))
    same = pipe(best.text["prompt"], generator=generator, **json.loads(best.text["pipeline_kwargs"])).images[
        0
    ]
    assert np.abs(np.asarray(same).astype(int) - np.asarray(best.load())).max() <= 1
