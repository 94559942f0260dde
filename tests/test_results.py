"""The result folder, sample files and figures."""

from __future__ import annotations

import errno
import json
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from toy_clips import Slides, position

from toy_plugins import MODEL, VERIFIER, first_coordinate
from tts_vision import RunConfig, search
from tts_vision.candidates import Candidate
from tts_vision.errors import ConfigError, StorageError
from tts_vision.figures import Point, best_so_far, contact_sheet, lineage_svg
from tts_vision.files import best_of
from tts_vision.ledger import Spent
from tts_vision.media import pixels, read_media, read_text, still, suffix_of, write_media
from tts_vision.replays import replay
from tts_vision.results import Result, TopUp, load_result, ranked
from tts_vision.rng import row_seed
from tts_vision.runner import run
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.trace import Answer, Birth, Event, answers
from tts_vision.types import Media, Score, State, Video


@pytest.fixture(scope="module")  # made before plots are blank
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results") / "evosearch"
    search(
        MODEL, "two red circles", algorithm="evosearch", verifier=VERIFIER, budget="6x", seed=4, output=root
    )
    return root


@pytest.mark.draws
def test_the_folder_holds_what_the_readme_says(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "best.png",
        "config.yaml",
        "contact_sheet.png",
        "lineage.svg",
        "population",
        "result.json",
        "scaling.png",
        "trace.jsonl",
    }
    report = json.loads((folder / "result.json").read_text())
    assert set(report["timing"]) == {"seconds", "elapsed", "peak_memory"}
    with Image.open(folder / "scaling.png") as plot:
        assert plot.width > 500
    assert (folder / report["best"]["file"]).read_bytes() == (folder / "best.png").read_bytes()
    assert report["config_hash"] == RunConfig.load(folder / "config.yaml").hash
    assert report["spent"]["nfe"] <= report["budget"]["nfe"] == 36
    scores = [entry["score"] for entry in report["population"]]
    assert scores == sorted(scores, reverse=True)


def test_images_say_what_they_are(folder: Path) -> None:
    report = json.loads((folder / "result.json").read_text())
    for entry in report["population"]:
        with Image.open(folder / entry["file"]) as image:
            text: dict[Any, Any] = dict(image.info)
        assert text["prompt"] == "two red circles"
        assert (text["seed"], text["uid"]) == ("4", str(entry["uid"]))
        assert float(text["score"]) == entry["score"]
        assert text["config"] == report["config_hash"]
        if entry["row_seed"] is None:
            assert "row_seed" not in text
        else:
            assert int(text["row_seed"]) == row_seed(4, entry["uid"]) == entry["row_seed"]
    assert sum(entry["row_seed"] is not None for entry in report["population"]) > 0
    assert any(entry["row_seed"] is None for entry in report["population"])


def test_a_result_is_read_back(folder: Path) -> None:
    result = load_result(folder)
    fresh = search(MODEL, "two red circles", algorithm="evosearch", verifier=VERIFIER, budget="6x", seed=4)
    assert [c.uid for c in result.population] == [c.uid for c in fresh.population]
    assert [c.score for c in result.population] == [c.score for c in fresh.population]
    assert result.config == fresh.config
    assert result.lineage() == fresh.lineage()
    assert np.array_equal(pixels(result.best.load()), pixels(fresh.best.load()))
    assert result.plot().axes[0].get_xlabel().startswith("network evaluations")
    with pytest.raises(ConfigError, match=r"A particle must be one of 0 to .* but got 9999"):
        result.lineage(9999)


def test_independent_samples_at_the_end_are_told_apart(tmp_path: Path) -> None:
    # previews make particles so dear in verifier calls that compute is left over
    settings: dict[str, Any] = {"algorithm": "fk_steering", "verifier": VERIFIER, "seed": 4}
    result = search(MODEL, "a", budget="9x and verifier_calls=30", output=tmp_path, **settings)
    start = next(answers(result.trace, "top_up"))
    later = [uid for event in answers(result.trace, "score") if event.op > start.op for uid in event.uids]
    assert result.topped_up == TopUp(len(later), nfe=6.0 * len(later)) != TopUp()
    assert result.spent.nfe == start.spent.nfe + result.topped_up.nfe
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["topped_up"] == {"samples": len(later), "nfe": 6.0 * len(later), "macs": 0.0}
    assert load_result(tmp_path).topped_up == result.topped_up
    whole = search(MODEL, "a", budget="9x", verifier=VERIFIER)
    assert whole.topped_up == TopUp(), "independent samples are its own"


@pytest.mark.parametrize(("target", "satisfied"), [(None, None), (-100.0, True), (100.0, False)])
def test_a_result_says_whether_it_reached_its_target(
    target: float | None, satisfied: bool | None, tmp_path: Path
) -> None:
    result = search(MODEL, "a", verifier=VERIFIER, budget="3x", target=target, output=tmp_path)
    back = load_result(tmp_path)
    report = json.loads((tmp_path / "result.json").read_text())
    assert result.satisfied is back.satisfied is report["satisfied"] is satisfied
    assert back.config.target == target
    word = {None: "", True: ", satisfied", False: ", not satisfied"}[satisfied]
    assert f" s{word}, in" in repr(back)


def test_values_that_settle_are_kept_as_they_are_at_the_end(tmp_path: Path) -> None:
    verifier = f"ensemble({VERIFIER}, {MODEL.rpartition('@')[0]}@first_coordinate)"
    result = search(
        MODEL, "a", algorithm="evosearch", verifier=verifier, budget="6x", seed=4, output=tmp_path
    )
    values = [candidate.score.value for candidate in result.population]
    assert values == sorted(values, reverse=True) and 0 <= min(values) < max(values) <= 1
    recorded = [value for e in answers(result.trace, "score") if not e.preview for value in e.values]
    assert sorted(recorded) != sorted(values), "ranks among all differ from those among a few"
    back = load_result(tmp_path)
    assert [c.score for c in back.population] == [c.score for c in result.population]
    assert back.curve()[-1].best == result.best.score.value == max(values)
    assert back.curve()[-1].best_uid == result.best.uid
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["spent"]["calls"] == {"target_reward": len(values), "first_coordinate": len(values)}
    # a file that is written before the end says what each member said; only that stays true
    for candidate in back.population:
        assert candidate.path is not None and candidate.path.stem == f"{candidate.uid:05d}"
        with Image.open(candidate.path) as image:
            assert json.loads(str(image.info["score"])) == candidate.score.parts
    assert f"#{result.best.uid} {result.best.score.value:.4g}" in (tmp_path / "lineage.svg").read_text()


def test_the_winner_is_saved_with_its_text(tmp_path: Path) -> None:
    result = search(GaussianMixtureSampler(num_steps=4), "a b", verifier=first_coordinate, budget="2x")
    result.best.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.info["prompt"] == "a b"
        assert image.info["config"] == result.config.hash
    result.best.save(tmp_path / "x.jpg")
    assert (tmp_path / "x.jpg").stat().st_size


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt"])
def test_a_folder_that_is_not_empty_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    config = RunConfig(prompt="a", model=MODEL, verifier=VERIFIER)
    with pytest.raises(ConfigError, match=f"must be new or empty .* holds 1 entries .*{name}"):
        run(config, output=tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(ConfigError, match="must be a folder"):
        run(config, output=tmp_path / name)


def test_folders_without_a_result_are_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold config.yaml"):
        load_result(tmp_path)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match="needs a finished search"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(StorageError, match="must be what a search wrote"):
        load_result(tmp_path)


@pytest.mark.parametrize("suffix", ["_0.png", "best.png", "contact_sheet.png", "result.json"])
def test_a_full_disk_is_told_and_nothing_is_lost(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision import results

    config = RunConfig(prompt="a", model=MODEL, verifier=VERIFIER, budget="4x")
    run(config, output=tmp_path / "whole")
    replace_file = results.replace_file
    full = True

    def refuse(path: Path, write: Any, what: str) -> None:
        def fail(part: Path) -> None:
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        is_it = path.name == suffix or (suffix == "_0.png" and path.name.startswith("00002"))
        replace_file(path, fail if full and is_it else write, what)

    monkeypatch.setattr(results, "replace_file", refuse)
    with pytest.raises(StorageError, match=r"No space left on device.* 'tts-vision resume' goes on"):
        run(config, output=tmp_path / "cut")
    full = False
    run(config, output=tmp_path / "cut", resume=True)
    for name in ("best.png", "contact_sheet.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut").rglob(".*"))
    assert len(list((tmp_path / "cut" / "population").iterdir())) == 4


def clip(frames: int = 5) -> Video:
    values = torch.arange(frames * 4 * 6 * 3, dtype=torch.int64).view(frames, 4, 6, 3) % 256
    return Video(values.to(torch.uint8), fps=4.0)


def test_clips_are_kept_without_loss_as_animated_png(tmp_path: Path) -> None:
    video = clip()
    video.frames[2] = video.frames[1]  # equal frames are joined inside the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_media(video, tmp_path / "a.png", {"prompt": "ü"})
        write_media(video, tmp_path / "b.png", {"prompt": "ü"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    back = read_media(tmp_path / "a.png")
    assert isinstance(back, Video)
    assert back.fps == 4.0
    assert torch.equal(back.frames, video.frames)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["prompt"] == "ü"


def test_without_pyav_clips_become_png_and_mp4_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision import media

    monkeypatch.setattr(media, "_has_av", lambda: False)
    assert suffix_of(clip()) == ".png"
    with pytest.warns(UserWarning, match=r"stored as animated PNG; pip install 'tts-vision\[video\]'"):
        write_media(clip(), tmp_path / "a.png", {})
    with pytest.raises(ConfigError, match="MP4 files need PyAV"):
        write_media(clip(), tmp_path / "a.mp4", {})


def test_clips_are_mp4_with_pyav(tmp_path: Path) -> None:
    pytest.importorskip("av")
    video = Video(torch.full((6, 32, 48, 3), 128, dtype=torch.uint8), fps=8.0)
    write_media(video, tmp_path / "a.mp4", {"prompt": "a"})
    write_media(video, tmp_path / "b.mp4", {"prompt": "a"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    back = read_media(tmp_path / "a.mp4")
    assert isinstance(back, Video)
    assert back.frames.shape == video.frames.shape
    assert (back.frames.int() - 128).abs().max() < 8
    assert back.fps == 8.0


class Clips(GaussianMixtureSampler):
    """The toy sampler with clips for images."""

    modality = "video"

    def decode(self, state: State) -> list[Media]:
        images = [torch.from_numpy(pixels(media)) for media in super().decode(state)]
        return [Video(torch.cat([255 - image, image])) for image in images]


def brightness(media: list[Media], prompts: list[str]) -> list[float]:
    return [float(pixels(clip).mean()) for clip in media]


@pytest.mark.filterwarnings("ignore:PyAV")
def test_a_search_over_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision import media

    monkeypatch.setattr(media, "_has_av", lambda: False)
    sampler = Clips(num_steps=4)
    result = search(sampler, "a", verifier=brightness, budget="3x", output=tmp_path)
    best = read_media(tmp_path / "best.png")
    assert isinstance(best, Video)
    assert len(best.frames) == 2
    assert len(result.population) == 3
    assert replay(tmp_path, sampler).max_difference == 0


def test_the_files_of_a_search_over_clips(tmp_path: Path) -> None:
    pytest.importorskip("av")
    judged: dict[float, torch.Tensor] = {}

    def taste(media: list[Media], prompts: list[str]) -> list[float]:
        values = position(media, prompts)
        judged.update(zip(values, (clip.frames for clip in media if isinstance(clip, Video))))
        return values

    sampler = Slides(num_steps=4)
    result = search(sampler, "a ü square", verifier=taste, budget="4x", seed=3, output=tmp_path)
    kept = sorted((tmp_path / "population").iterdir())
    assert [path.suffix for path in kept] == [".mkv", ".mp4"] * 4
    for sample in result.population:
        stored = sample.load()
        assert isinstance(stored, Video) and stored.fps == 12.5
        assert torch.equal(stored.frames, judged[sample.score.value])  # what is judged is what is stored
        assert sample.path is not None
        shown = read_media(sample.path.with_suffix(".mp4"))
        assert isinstance(shown, Video) and shown.frames.shape == stored.frames.shape and shown.fps == 12.5
    best = read_media(tmp_path / "best.mkv")
    assert isinstance(best, Video) and torch.equal(best.frames, judged[result.best.score.value])
    for name in ("best.mkv", "best.mp4", "best.gif"):
        told = read_text(tmp_path / name)
        assert (told["prompt"], told["seed"], told["fps"]) == ("a ü square", "3", "12.5"), name
        back = read_media(tmp_path / name)
        assert isinstance(back, Video) and back.frames.shape == best.frames.shape and back.fps == 12.5
    assert load_result(tmp_path).best.path == result.best.path
    assert replay(tmp_path, sampler).max_difference == 0
    result.best.save(tmp_path / "mine.gif")
    assert read_text(tmp_path / "mine.gif")["uid"] == str(result.best.uid)
    assert best_of(tmp_path) == tmp_path / "best.mkv"


def test_a_large_clip_has_a_smaller_gif(tmp_path: Path) -> None:
    sampler = Slides(num_steps=2)
    sampler.scale = (40, 80)
    search(sampler, "a", verifier=position, budget="1x", output=tmp_path)
    back = read_media(tmp_path / "best.gif")
    assert isinstance(back, Video) and back.frames.shape == (6, 240, 480, 3)


def film(uid: int, frames: int, value: float, invalid: bool = False) -> Candidate:
    """A clip of 16x12 whose frame at `t` has the colour ``(uid, t, 80)``."""
    values = torch.zeros(frames, 12, 16, 3, dtype=torch.uint8)
    values[..., 0], values[..., 2] = uid, 80
    values[..., 1] = torch.arange(frames, dtype=torch.uint8)[:, None, None]
    score = Score.of_invalid("broken") if invalid else Score(value=value)
    return Candidate(uid, score, 4, media=Video(values, 8.0))


@pytest.mark.parametrize(("n", "frames"), [(1, 21), (3, 6), (12, 4), (3, 1)])
def test_contact_sheet_has_strips_of_clips(n: int, frames: int) -> None:
    sheet = contact_sheet([film(10 + i, frames, float(-i)) for i in range(n)], title="x", plain=11)
    packed = np.asarray(sheet).astype(np.int64) @ [1 << 16, 1 << 8, 1]

    def place(uid: int, t: int) -> tuple[int, int] | None:
        """Row and column of the first pixel of a frame."""
        found = np.argwhere(packed == (uid << 16 | t << 8 | 80))
        return tuple(found[0].tolist()) if len(found) else None

    chosen = [round(i * (frames - 1) / 5) for i in range(6)]
    for uid in range(10, 10 + n):
        places = [place(uid, t) for t in range(frames)]
        assert [t for t in range(frames) if places[t]] == sorted(set(chosen)), uid
        columns = [at[1] for at in places if at]
        assert columns == sorted(columns)  # in order of time
    starts = [place(uid, 0) for uid in range(10, 10 + n)]
    assert starts == sorted(starts, key=lambda at: at or (0, 0))  # best first
    assert sheet.width <= 1300


def test_contact_sheet_crosses_out_invalid_clips_and_ends_at_a_hundred() -> None:
    plain, crossed = (contact_sheet([film(10, 6, 1.0, invalid)]) for invalid in (False, True))
    assert plain.size == crossed.size and plain.tobytes() != crossed.tobytes()
    many = contact_sheet([film(i, 2, float(-i)) for i in range(103)], title="many")
    found = {colour for _, colour in many.getcolors(1 << 20) or []}
    assert {(i, 0, 80) for i in range(103)} & found == {(i, 0, 80) for i in range(100)}


def candidate(uid: int, value: float) -> Candidate:
    return Candidate(uid, Score(value=value), 4, media=Image.new("RGB", (64, 48), (uid % 256, 80, 80)))


def test_unscored_samples_rank_last_and_equals_by_uid() -> None:
    nan = float("nan")
    order = ranked([candidate(3, 1.0), candidate(0, nan), candidate(2, 1.0), candidate(1, 2.0)])
    assert [c.uid for c in order] == [1, 2, 3, 0]


@pytest.mark.parametrize("n", [1, 5, 60])
def test_contact_sheet_has_every_image(n: int) -> None:
    sheet = contact_sheet([candidate(i, float(-i)) for i in range(n)], title="x" * 300)
    colors = {color for _, color in sheet.getcolors(1 << 20) or []}
    assert all((i, 80, 80) in colors for i in range(n))
    assert sheet.width <= 1300
    assert still(clip()).size == (6, 4)


def scored(op: int, uids: tuple[int, ...], values: tuple[float, ...], spent: Spent) -> Answer:
    scores = tuple(Score(value=value) for value in values)
    return Answer(op=op, what="score", uids=uids, scores=scores, spent=spent)


def events() -> list[Event]:
    return [
        Birth(op=0, uids=(0, 1), move={"name": "init"}, seeds=(0, 9)),
        Birth(op=1, uids=(0, 2), parents=(0, 0), step=2, from_step=2, move={"name": "select"}),
        Birth(op=2, uids=(3,), parents=(2,), step=2, from_step=2, move={"name": "blend", "beta": 0.5}),
        Birth(op=3, uids=(4,), parents=(3,), step=1, from_step=4, move={"name": "renoise", "to_step": 1}),
        scored(4, (0, 4), (1.0, float("nan")), Spent(nfe=8, elapsed=2.0)),
        scored(5, (2, 3), (0.5, 3.0), Spent(nfe=12, elapsed=3.0)),
    ]


def test_lineage_shows_every_particle_once() -> None:
    tree = ElementTree.fromstring(lineage_svg(events(), 4))
    titles = [node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(title.split(",")[0] for title in titles) == ["#0", "#1", "#2", "#3", "#4"]
    assert any("blend, step 2, from #2" in title and "beta" in title for title in titles)
    assert any("renoise, step 1, from #3" in title and "unscored" in title for title in titles)
    ElementTree.fromstring(lineage_svg([], None))


def test_lineage_of_hundreds_stays_on_one_page() -> None:
    many: list[Event] = [Birth(op=0, uids=tuple(range(600)), move={"name": "init"}, seeds=tuple(range(600)))]
    tree = ElementTree.fromstring(lineage_svg(many, 3))
    assert float(tree.get("height") or 0) < 3000
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}text"))) < 20


def test_progress_shares_what_was_spent_among_samples() -> None:
    assert best_so_far(events()) == [
        Point(4.0, 1.0, uid=0, value=1.0, best_uid=0, best=1.0),
        Point(10.0, 2.5, uid=2, value=0.5, best_uid=0, best=1.0),
        Point(12.0, 3.0, uid=3, value=3.0, best_uid=3, best=3.0),
    ]


def test_progress_goes_by_the_scores_at_the_end() -> None:
    final = {0: 0.2, 2: 0.9, 3: 0.4, 4: float("nan")}
    assert [(p.uid, p.value, p.best_uid, p.best) for p in best_so_far(events(), final)] == [
        (0, 0.2, 0, 0.2),
        (2, 0.9, 2, 0.9),
        (3, 0.4, 2, 0.9),
    ]


def test_a_result_without_a_score_says_so() -> None:
    config = RunConfig(prompt="a", verifier="v")
    result = Result(None, [candidate(0, float("nan"))], [], Spent(), budget=None, config=config)  # type: ignore[arg-type]
    assert "none of 1 samples could be scored" in repr(result)
    assert result._repr_png_() is None


def test_the_winner_of_best_of_n_is_made_again_by_plain_diffusers(tmp_path: Path) -> None:
    """From the one number in its file, without this package."""
    from tiny_pipelines import TINY

    tiny = TINY["stable_diffusion"]
    pipe = tiny.build()
    call = {"num_inference_steps": 3, **tiny.kwargs}
    settings: dict[str, Any] = {"verifier": brightness, "budget": "5x", "seed": 3, "pipeline_kwargs": call}
    search(pipe, "two red circles", output=tmp_path, **settings)
    with Image.open(tmp_path / "best.png") as image:
        text: dict[Any, Any] = dict(image.info)
        found = pixels(image.convert("RGB"))
    assert text["uid"] != "0"
    generator = torch.Generator("cpu").manual_seed(int(text["row_seed"]))
    plain = pipe(text["prompt"], generator=generator, **call).images[0]
    assert np.array_equal(pixels(plain), found)
    assert replay(tmp_path, pipe).max_difference == 0
