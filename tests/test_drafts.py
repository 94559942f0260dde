"""Draft, pick, finish: drafts go on from exactly where they stand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import tts_vision
from tts_vision.cli import app
from tts_vision.context import SearchContext
from tts_vision.drafts import SHEET, draft_file
from tts_vision.errors import BusyError, ConfigError, StorageError
from tts_vision.files import STOPPED
from tts_vision.locks import one_writer
from tts_vision.results import Result, load_result
from tts_vision.testing.contracts import Killed, SlowReward, kills
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import Event, answers
from tts_vision.types import Media, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

STEPS = 8


def sampler() -> GaussianMixtureSampler:
    return GaussianMixtureSampler(num_steps=STEPS)


def drafted(folder: Path, n: int = 6, **settings: Any) -> Result:
    return tts_vision.draft(sampler(), "x", n, verifier=TargetReward(), output=folder, seed=5, **settings)


def finished(folder: Path, numbers: Sequence[int], **settings: Any) -> Result:
    return tts_vision.finish(folder, numbers, pipe=sampler(), verifier=TargetReward(), **settings)


def best_of(n: int) -> dict[int, bytes]:
    """The samples of a plain search of the same seed, by particle."""
    plain = tts_vision.search(
        sampler(), "x", verifier=TargetReward(), algorithm_params={"n": n}, budget=f"{n}x", seed=5
    )
    return pixels(plain)


def pixels(result: Result) -> dict[int, bytes]:
    found = {}
    for candidate in result.population:
        media = candidate.load()
        assert isinstance(media, Image.Image)
        found[candidate.uid] = media.tobytes()
    return found


@pytest.mark.parametrize("steps_done", [1, 2, STEPS - 1])
def test_a_finished_draft_is_the_sample_of_its_particle_bit_for_bit(tmp_path: Path, steps_done: int) -> None:
    drafts = drafted(tmp_path, steps_done=steps_done)
    assert drafts.stopped and not drafts.population and drafts.spent.nfe == 6 * steps_done
    done = finished(tmp_path, [4, 1])
    plain = best_of(6)
    assert pixels(done) == {uid: plain[uid] for uid in (1, 4)}
    assert done.spent.nfe == 6 * steps_done + 2 * (STEPS - steps_done), "nothing is computed twice"
    assert done.best.uid in (1, 4) and not done.is_preview


def test_drafts_are_finished_in_any_order_and_once(tmp_path: Path) -> None:
    drafted(tmp_path)
    finished(tmp_path, [3])
    spent = finished(tmp_path, [5, 3, 5]).spent
    done = finished(tmp_path, [0, 3])
    plain = best_of(6)
    assert pixels(done) == {uid: plain[uid] for uid in (0, 3, 5)}
    assert done.spent.nfe == spent.nfe + STEPS - 2
    assert load_result(tmp_path).stopped and (tmp_path / STOPPED).exists(), "more may be finished later"
    asked = [answer.value for answer in answers(done.trace, "picks")]
    assert asked == [[3], [5, 3, 5], [0, 3]]
    again = tts_vision.replay(tmp_path, sampler())
    assert again.max_difference == 0


def test_the_contact_sheet_and_the_previews_are_files(tmp_path: Path) -> None:
    result = drafted(tmp_path, n=3)
    for uid in range(3):
        with Image.open(draft_file(tmp_path, uid)) as image:
            assert image.size == (16, 16)
    with Image.open(tmp_path / SHEET) as sheet:
        assert sheet.width > 3 * 100
    assert result.is_preview and result.best.uid in range(3)


def test_the_budget_covers_drafts_and_finished_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must pay for all 6 drafts of 2 steps but pays for 5; lower n"):
        drafted(tmp_path / "a", budget="nfe=11")
    assert not (tmp_path / "a").exists()
    drafted(tmp_path / "b", budget="nfe=18")
    done = finished(tmp_path / "b", [1])
    assert pixels(done).keys() == {1} and done.spent.nfe == 18 and not done.budget_spent
    over = finished(tmp_path / "b", [2])
    assert over.budget_spent and pixels(over).keys() == {1} and over.spent.nfe == 18
    drafted(tmp_path / "c")
    assert len(finished(tmp_path / "c", range(6)).population) == 6, "by default all can be finished"


def test_steps_must_lie_inside_the_trajectory(tmp_path: Path) -> None:
    for steps in (0, STEPS, STEPS + 1):
        with pytest.raises(ConfigError, match=rf"after 1 to {STEPS - 1} steps, but got steps_done={steps}"):
            drafted(tmp_path / "a", steps_done=steps)
    assert not (tmp_path / "a").exists()


def test_a_kill_in_between_changes_nothing(tmp_path: Path) -> None:
    def whole(folder: Path) -> list[Event]:
        seen: list[Event] = []
        drafted(folder, progress=lambda context, event: seen.append(event))
        finished(folder, [4, 1], progress=lambda context, event: seen.append(event))
        return seen

    events = whole(tmp_path / "whole")
    for count in kills(len(events) - 1, 8):
        folder, left = tmp_path / f"killed-{count}", count

        def die(context: SearchContext, event: Event) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        try:
            drafted(folder, progress=die)
        except Killed:
            drafted(folder, resume=True)
        try:
            finished(folder, [4, 1], progress=die)
        except Killed:
            finished(folder, [4, 1])
        for name in ("result.json",):
            one, two = (json.loads((root / name).read_text()) for root in (folder, tmp_path / "whole"))
            del one["timing"], two["timing"]
            assert one == two, f"killed after event {count}"
        assert all(draft_file(folder, uid).exists() for uid in range(6)) and (folder / SHEET).exists()
        shutil.rmtree(folder)


def test_numbers_must_be_those_of_drafts(tmp_path: Path) -> None:
    drafted(tmp_path / "a", n=3)
    with pytest.raises(ConfigError, match=r"by their numbers on the contact sheet, 0 to 2, but got 17"):
        finished(tmp_path / "a", [1, 17])
    with pytest.raises(ConfigError, match="but got none; name at least one"):
        finished(tmp_path / "a", [])
    tts_vision.search(sampler(), "x", verifier=TargetReward(), budget="1x", output=tmp_path / "b")
    with pytest.raises(ConfigError, match="holds a search by 'best_of_n'; make drafts with"):
        finished(tmp_path / "b", [0])
    with pytest.raises(ConfigError, match=r"must hold config.yaml"):
        finished(tmp_path / "c", [0])


def test_a_folder_of_drafts_has_one_writer(tmp_path: Path) -> None:
    drafted(tmp_path)
    with one_writer(tmp_path), pytest.raises(BusyError, match="one writer at a time"):
        finished(tmp_path, [1])
    assert not load_result(tmp_path).population


def test_drafts_are_finished_by_what_made_them(tmp_path: Path) -> None:
    drafted(tmp_path)
    with pytest.raises(ConfigError, match="live model cannot be started from its configuration"):
        tts_vision.finish(tmp_path, [1], verifier=TargetReward())
    other = GaussianMixtureSampler(num_steps=STEPS, eta=0.5)
    with pytest.raises(ConfigError, match=r"same live objects but model\.eta is 0\.5 and was 1\.0"):
        tts_vision.finish(tmp_path, [1], pipe=other, verifier=TargetReward())


def test_a_folder_of_drafts_is_data(tmp_path: Path) -> None:
    drafted(tmp_path / "a", n=2)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    before = secret.read_bytes()
    draft_file(tmp_path / "a", 0).unlink()
    draft_file(tmp_path / "a", 0).symlink_to(secret)
    with pytest.raises(StorageError, match=r"regular files but .* is a symlink"):
        finished(tmp_path / "a", [1])
    assert secret.read_bytes() == before


class Spiteful(Verifier):
    """Scores nothing."""

    name = "spiteful"
    accepts = TargetReward.accepts

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score.unscored("no")] * len(media)


def test_drafts_that_nobody_scores_can_be_picked_by_eye(tmp_path: Path) -> None:
    drafts = tts_vision.draft(sampler(), "x", 3, verifier=Spiteful(), output=tmp_path)
    assert drafts.winner is None and (tmp_path / SHEET).exists()
    done = tts_vision.finish(tmp_path, [2], pipe=sampler(), verifier=Spiteful())
    assert [candidate.uid for candidate in done.population] == [2]


def test_a_strangers_folder_asks_for_trust(tmp_path: Path) -> None:
    plugin = tmp_path / "judge.py"
    mark = tmp_path / "ran"
    plugin.write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "def judge(images, prompts):\n    return [1.0] * len(images)\n"
    )
    spec = f"{plugin}@judge"
    tts_vision.draft("playground", "a red circle", 2, verifier=spec, output=tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    mark.unlink()
    with pytest.raises(ConfigError, match=r"would run .*judge.py@judge; read it"):
        tts_vision.finish(tmp_path / "theirs", [1])
    assert not mark.exists()
    assert len(tts_vision.finish(tmp_path / "mine", [1]).population) == 1, "one's own needs no trust"


def test_the_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder = str(tmp_path / "drafts")
    made = run(app, ["draft", "a red circle", "-n", "4", "--steps", "4", "-o", folder])
    assert made.exit_code == 0, made.output
    assert f"drafts  {folder}/{SHEET}" in made.output and f"tts-vision finish {folder} NUMBERS" in made.output
    done = run(app, ["finish", folder, "3", "1"])
    assert done.exit_code == 0, done.output
    result = load_result(folder)
    assert {c.uid for c in result.population} == {1, 3}
    for candidate in result.population:
        assert f"#{candidate.uid}" in done.output and str(candidate.path) in done.output
    wrong = run(app, ["finish", folder, "9"])
    assert wrong.exit_code == 2 and "0 to 3, but got 9" in wrong.output


def test_slow_verifiers_count_against_a_budget_of_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision.testing.contracts import FakeClock

    judge = SlowReward(FakeClock(monkeypatch), 1.0)
    drafts = tts_vision.draft(sampler(), "x", 4, verifier=judge, budget="seconds=8", output=tmp_path)
    assert drafts.spent.elapsed == 4
    done = tts_vision.finish(tmp_path, [0, 1, 2], pipe=sampler(), verifier=judge)
    assert len(done.population) == 3 and done.spent.elapsed == 7
