"""The tree of a search: its nodes, their parents, which were pruned, and the image of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_chunks import ToyClips
from toy_judge_of_clips import Bright

import tts_vision
from toy_plugins import MODEL, VERIFIER
from tts_vision.config import RunConfig
from tts_vision.context import SearchContext
from tts_vision.errors import StorageError
from tts_vision.journal import Journal
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.results import TOP_UP, Result, SampleFolder, load_result, write_result
from tts_vision.runner import run
from tts_vision.trace import Answer, Birth, Event
from tts_vision.tree_figure import Tree, thumbnail, tree_sheet
from tts_vision.types import Score, Video


def clips() -> ChunkSampler:
    return ChunkSampler(ToyClips((4, 4, 4)))


def searched(folder: Path, **settings: Any) -> Result:
    params = {"n": 4, "candidates": [2, 1], "branch": [2, 1], "keep": [2], "prune_after": [1], **settings}
    return tts_vision.search(
        clips(),
        "a ball",
        algorithm="tree_of_frames",
        verifier=Bright(),
        algorithm_params=params,
        output=folder,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "run"
    searched(root)
    return root


def birth(uids: tuple[int, ...], parents: tuple[int, ...] = (), step: int = 0, name: str = "select") -> Birth:
    name = name if parents else "init"
    return Birth(op=0, uids=uids, parents=parents, step=step, from_step=step, move={"name": name})


def scored(uids: tuple[int, ...], step: int, *values: float, what: str = "score", op: int = 0) -> Answer:
    return Answer(op=op, what=what, uids=uids, step=step, scores=tuple(Score(value=v) for v in values))


TRACE: list[Event] = [
    birth((0, 1, 2, 3)),
    scored((0, 1, 2, 3), 1, 0.5, 0.7, 0.1, math.nan),
    birth((1, 4, 0), (1, 1, 0), step=1),
    scored((1, 4, 0), 2, 0.6, 0.8, 0.2, what="stage_score"),
    birth((5, 6), (4, 1), step=2, name="recondition"),
    scored((5, 6), 3, 0.9, 0.3),
    # a third child, of a node that was expanded before
    birth((7,), (1,), step=1, name="select"),
    scored((7,), 3, 0.95),
    Answer(op=9, what=TOP_UP),
    birth((8, 9)),
    scored((8, 9), 3, 0.4, 0.2, op=10),
]


def test_nodes_and_their_parents() -> None:
    tree = Tree.of(TRACE, 5, until=TOP_UP)
    assert tree.parents == {
        (0, 1): None,
        (1, 1): None,
        (2, 1): None,
        (3, 1): None,
        (1, 2): (1, 1),
        (4, 2): (1, 1),
        (0, 2): (0, 1),
        (5, 3): (4, 2),
        (6, 3): (1, 2),
        (7, 3): (1, 1),
    }
    assert tree.best == {(5, 3), (4, 2), (1, 1)} and tree.last == 3
    assert [key for key in tree.scores if tree.is_pruned(key)] == [(2, 1), (3, 1), (0, 2)]
    assert tree.children[None] == [(1, 1), (0, 1), (2, 1), (3, 1)], "best first, unscored last"
    assert (8, 3) in Tree.of(TRACE, 8, until=TOP_UP).best, "but for the winner"


def test_a_score_by_the_prompt_of_the_user_is_shown_before_others() -> None:
    events = [
        birth((0,)),
        scored((0,), 1, 0.1, what="judge"),
        scored((0,), 1, 0.7),
        scored((0,), 1, 0.2, what="stage_score"),
    ]
    assert Tree.of(events, None).scores == {(0, 1): 0.7}


def test_of_a_large_tree_the_best_ends_are_shown() -> None:
    tree = Tree.of(TRACE, 5, until=TOP_UP)
    assert set(tree.smaller(1).scores) == {(5, 3), (4, 2), (1, 1)}
    assert set(tree.smaller(2).scores) == {(5, 3), (4, 2), (1, 1), (7, 3)}
    many: list[Event] = [
        birth(tuple(range(300))),
        scored(tuple(range(300)), 1, *[float(i) for i in range(300)]),
    ]
    sheet = tree_sheet(Tree.of(many, 7), lambda node: None, title="many")
    assert sheet.height < 120 * 90 + 100


def test_the_image_shows_pruned_nodes_in_grey_and_the_winner_in_red() -> None:
    tree = Tree.of(TRACE, 5, until=TOP_UP)
    green = Image.new("RGB", (64, 64), (0, 160, 0))
    pixels = np.asarray(tree_sheet(tree, lambda node: green, title="a ball").convert("RGB")).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    known = {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist())}
    kept, grey = 7, 3
    inside = 62 * 62  # within the frame
    assert kept * inside <= known[(0, 160, 0)] <= kept * 64 * 64
    level = max(count for (r, g, b), count in known.items() if r == g == b and 150 < r < 250)
    assert grey * inside <= level <= grey * 64 * 64 + 200, "with its letters"
    assert known[(0xD1, 0x49, 0x5B)] > 3 * 4 * 64, "frames and lines"
    nothing = tree_sheet(Tree.of([], None), lambda node: None)
    assert nothing.width > 0


def test_the_folder_has_a_thumbnail_for_each_node_and_the_tree(folder: Path) -> None:
    result = load_result(folder)
    tree = Tree.of(result.trace, result.best.uid, until=TOP_UP)
    files = {path.name for path in (folder / "thumbnails").iterdir()}
    assert files == {f"{uid:05d}_{step:05d}.png" for uid, step in tree.scores}
    assert len(tree.scores) == 8 + 8 + 2
    clip = result.best.load()
    assert isinstance(clip, Video)
    stored = Image.open(folder / "thumbnails" / f"{result.best.uid:05d}_00003.png")
    assert np.array_equal(np.asarray(stored), np.asarray(thumbnail(clip)))
    with Image.open(folder / "tree.png") as image:
        assert image.width > 3 * stored.width and image.height > 8 * stored.height


def test_a_tree_is_the_same_after_a_kill_at_any_event(tmp_path: Path) -> None:
    config = RunConfig(prompt="x", model=MODEL, algorithm="tree_of_frames", verifier=VERIFIER, budget="3x")
    whole, taken = tmp_path / "whole", []

    def take(context: SearchContext, event: Event) -> None:
        taken.append(tmp_path / f"killed-{len(taken)}")
        shutil.copytree(whole, taken[-1], ignore=shutil.ignore_patterns("lock*"))

    run(config, output=whole, progress=take)
    for root in taken:
        run(config, output=root, resume=True)
        for path in [whole / "tree.png", *(whole / "thumbnails").iterdir()]:
            assert (root / path.relative_to(whole)).read_bytes() == path.read_bytes(), (root.name, path.name)
        assert len(list((root / "thumbnails").iterdir())) == len(list((whole / "thumbnails").iterdir()))


@pytest.mark.parametrize("figures", [True, False])
def test_without_figures_there_are_no_thumbnails(figures: bool, tmp_path: Path) -> None:
    config = RunConfig(
        prompt="x", model=MODEL, algorithm="tree_of_frames", verifier=VERIFIER, budget="6x", seed=1
    )
    run(config, output=tmp_path / "run", figures=figures)
    assert (tmp_path / "run" / "thumbnails").exists() is (tmp_path / "run" / "tree.png").exists() is figures


def test_missing_thumbnails_are_left_blank_and_links_not_followed(tmp_path: Path) -> None:
    config = RunConfig(prompt="x", model=MODEL, algorithm="tree_of_frames", verifier=VERIFIER, budget="6x")
    result = run(config, output=tmp_path / "run")
    for path in (tmp_path / "run" / "thumbnails").iterdir():
        path.unlink()
    write_result(result)
    assert (tmp_path / "run" / "tree.png").exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "thumbnails").rmdir()
    (tmp_path / "run" / "thumbnails").symlink_to(tmp_path / "elsewhere")
    kept = SampleFolder(config, Journal(), tmp_path / "run")
    with pytest.raises(StorageError, match="symlink"):
        kept.show(0, 1, Image.new("RGB", (8, 8)))
    assert not list((tmp_path / "elsewhere").iterdir())
