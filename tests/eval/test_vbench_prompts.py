"""VBench's prompts: the shipped file, own lists, and what is refused."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluators.vbench import VBench
from tts_vision.eval.vbench.dimensions import DIMENSIONS, PROXIES
from tts_vision.eval.vbench.prompts import file_stem, items, label, published, read_suite
from tts_vision.eval.vbench.proxies import SIDES, coloured_noun

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "vbench_full_info.json"
COUNTS = {
    "subject_consistency": 72,
    "background_consistency": 86,
    "temporal_flickering": 75,
    "motion_smoothness": 72,
    "dynamic_degree": 72,
    "aesthetic_quality": 93,
    "imaging_quality": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "scene": 86,
    "appearance_style": 90,
    "temporal_style": 100,
    "overall_consistency": 93,
}


def test_the_shipped_file_is_the_published_one() -> None:
    if not SHARED.is_file():
        pytest.skip(f"needs {SHARED}")
    records = json.loads(SHARED.read_text(encoding="utf-8"))
    assert [entry.plain() for entry in published().entries] == records
    digest = hashlib.sha256(SHARED.read_bytes()).hexdigest()
    assert digest == "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd"


def test_there_are_944_prompts_with_their_dimensions_and_labels() -> None:
    suite = published()
    found = items(suite, list(DIMENSIONS))
    assert len(suite.entries) == 946 and len(found) == 944
    assert len({item.prompt.text for item in found}) == len({item.id for item in found}) == 944
    counts = Counter(tag for item in found for tag in item.tags)
    assert counts == COUNTS
    both = [item for item in found if {"appearance_style", "overall_consistency"} <= set(item.tags)]
    assert sorted(item.prompt.text for item in both) == [
        "A beautiful coastal beach in spring, waves lapping on sand by Hokusai, in the style of Ukiyo",
        "The bund Shanghai, oil painting",
    ]
    assert label(both[1].prompt, "appearance_style") == "oil painting"
    assert both[0].prompt.metadata["auxiliary_info"]["appearance_style"]


def test_labels_of_all_forms() -> None:
    by_text = {item.prompt.text: item.prompt for item in items(published(), list(DIMENSIONS))}
    assert label(by_text["a bird and a cat"], "multiple_objects") == "bird and cat"
    assert label(by_text["a tennis racket"], "object_class") == "tennis racket"
    assert label(by_text["construction site"], "scene") == "construction site"
    assert label(by_text["a green bird"], "color") == "green"
    assert label(by_text["an apple on the top of a sandwich, front view"], "spatial_relationship") == {
        "object_a": "apple",
        "object_b": "sandwich",
        "relationship": "on the top of",
    }


def test_the_proxies_can_read_every_prompt_of_theirs() -> None:
    found = items(published(), list(dict.fromkeys(PROXIES.values())))
    colours = [item.prompt for item in found if "color" in item.tags]
    nouns = {coloured_noun(prompt.text, label(prompt, "color")) for prompt in colours}
    assert {"bird", "car", "vase", "umbrella", "suitcase"} <= nouns
    assert not any(noun.startswith(("a ", "an ")) or not noun for noun in nouns)
    sides = [item.prompt for item in found if "spatial_relationship" in item.tags]
    assert {label(prompt, "spatial_relationship")["relationship"] for prompt in sides} == set(SIDES)


def test_chosen_dimensions_bring_their_prompts_in_order() -> None:
    evaluator = VBench(dimensions=["dynamic_degree", "subject_consistency", "dynamic_degree"])
    found = evaluator.items()
    assert len(found) == 72 and found[0].tags == ("dynamic_degree", "subject_consistency")
    texts = [entry.prompt for entry in published().entries if "dynamic_degree" in entry.dimensions]
    assert [item.prompt.text for item in found] == texts
    assert len(VBench(dimensions=["color_proxy"]).items()) == 85


def test_names_of_clips_are_the_prompts() -> None:
    evaluator = VBench()
    for item in evaluator.items():
        assert evaluator.place(item, 3) == f"{item.prompt.text}-3"
    assert max(len(evaluator.place(item, 24).encode()) for item in evaluator.items()) < 240
    assert file_stem("either/or") == "either_or" and file_stem("///") == "___" and file_stem("") == "_"
    assert len(file_stem("é" * 300).encode()) == 230


def test_samples_that_the_protocol_asks_for() -> None:
    assert VBench().samples_per_item == 5
    flickering = VBench(dimensions=["temporal_flickering"])
    assert flickering.samples_per_item == 25
    assert VBench(dimensions=["temporal_flickering"], static_filter=False).samples_per_item == 5
    assert VBench().samples_of(flickering.items()[0]) == 25
    assert VBench().samples_of(VBench(dimensions=["dynamic_degree"]).items()[0]) == 5


@pytest.mark.parametrize("form", ["lines", "json", "folder"])
def test_own_prompts(tmp_path: Path, form: str) -> None:
    data = tmp_path / "mine"
    if form == "lines":
        data.write_text("\ufeffa cat\n\na dog / a fox\na cat\n", encoding="utf-8")
    elif form == "json":
        data = data.with_suffix(".json")
        data.write_text(json.dumps(["a cat", "a dog / a fox"]))
    else:
        data.mkdir()
        for name in ("a cat-0.mp4", "a cat-1.mp4", "a dog _ a fox.gif", "notes-0.txt"):
            (data / name).write_bytes(b"")
    evaluator = VBench(data=str(data))
    texts = ["a cat", "a dog _ a fox" if form == "folder" else "a dog / a fox"]
    assert [item.prompt.text for item in evaluator.items()] == texts
    assert evaluator.place(evaluator.items()[1], 0) == "a dog _ a fox-0"
    # all dimensions that need no label
    assert "appearance_style" not in evaluator.dimensions and "overall_consistency" in evaluator.dimensions
    assert all(item.tags == evaluator.dimensions for item in evaluator.items())
    assert "not VBench's" in " ".join(evaluator.notes)
    for name in ("appearance_style", "color_proxy"):
        with pytest.raises(ConfigError, match=f"{name}.*which own prompts lack"):
            VBench(data=str(data), dimensions=[name])


GOOD: dict[str, Any] = {
    "prompt_en": "a red car",
    "dimension": ["color"],
    "auxiliary_info": {"color": {"color": "red"}},
}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "JSON list of entries"),
        ([], "JSON list of entries"),
        ([GOOD, {"dimension": ["color"]}], "Entry 1 .*'prompt_en'"),
        ([{"prompt_en": "a"}], "Entry 0 .*'dimension'"),
        ([GOOD | {"dimension": ["beauty"]}], "'beauty'"),
        ([GOOD | {"auxiliary_info": {}}], "label for color"),
        ([GOOD | {"auxiliary_info": {"color": "red"}}], "label for color"),
        ([GOOD | {"auxiliary_info": None}], "label for color"),
        (
            [
                {
                    "prompt_en": "a",
                    "dimension": ["multiple_objects"],
                    "auxiliary_info": {"multiple_objects": {"object": "cat"}},
                }
            ],
            "label for multiple_objects",
        ),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, records: Any, message: str) -> None:
    file = tmp_path / "info.json"
    file.write_text(json.dumps(records))
    with pytest.raises(ConfigError, match=message):
        read_suite(str(file))


def test_data_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        VBench(data=str(tmp_path / "missing.json"))
    (tmp_path / "latin.txt").write_bytes("façade".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        VBench(data=str(tmp_path / "latin.txt"))
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(ConfigError, match="whole JSON"):
        VBench(data=str(tmp_path / "broken.json"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="has none"):
        VBench(data=str(tmp_path / "empty.txt"))
    (tmp_path / "same.txt").write_text("either/or\neither_or\n")
    with pytest.raises(ConfigError, match="clips are named by them"):
        VBench(data=str(tmp_path / "same.txt"))
    (tmp_path / "cars.json").write_text(json.dumps([GOOD]))
    with pytest.raises(ConfigError, match="choose other dimensions"):
        VBench(data=str(tmp_path / "cars.json"), dimensions=["dynamic_degree"]).items()
