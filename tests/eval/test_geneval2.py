"""GenEval 2: its data format, the judge step by step, figures by hand, the released files."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlms

from samples import some_images
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluator import Judged, Sample, Verdict
from tts_vision.eval.evaluators import geneval2
from tts_vision.eval.evaluators.geneval2 import GenEval2
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.verifiers._vlm import AnswerMass
from tts_vision.verifiers.soft_tifa import SoftTIFA
from tts_vision.verifiers.vqa_score import VQAScore

RECORDS: list[dict[str, Any]] = [
    {
        "prompt": "three red dogs",
        "atom_count": 3,
        "vqa_list": [
            ["How many dogs are in the image?", "three"],
            ["Are the dogs red?", "Yes"],
            ["Are there any dogs in the image?", "Yes"],
        ],
        "skills": ["count", "attribute", "object"],
    },
    {
        "prompt": "a \u201cpig\u201d on a table",
        "atom_count": 3,
        "vqa_list": [["Is the pig on the table?", "Yes"], ["How many pigs are in the image?", "one"]],
        "skills": ["position", "count"],
    },
    {
        "prompt": "a cat jumping over four boxes",
        "atom_count": 4,
        "vqa_list": [["Is the cat jumping over the boxes?", "Yes"]],
        "skills": ["verb"],
    },
]
TINY = {"device": "cpu", "dtype": "float32"}


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text(lines(RECORDS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_vlms.qwen_vl(tmp_path_factory.mktemp("judge")))


def judged_by_hand(evaluator: GenEval2, scores: list[list[float]], index: int = 0) -> list[Judged]:
    """The first prompts with these probabilities of their atoms."""
    found = []
    for item, some in zip(evaluator.items(), scores):
        gm = math.prod(some) ** (1 / len(some))
        values = {"soft_tifa_gm": gm, "soft_tifa_am": sum(some) / len(some), "tifa": 0.5, "vqascore": 0.25}
        found.append(Judged(Sample(item, index, Path("x.png")), Verdict(values, details={"scores": some})))
    return found


def test_items_are_the_lines_of_the_data(data: Path) -> None:
    items = GenEval2(data=data).items()
    assert [item.id for item in items] == ["00000", "00001", "00002"]
    assert [item.prompt.text for item in items] == [record["prompt"] for record in RECORDS]
    assert items[0].tags == ("count", "attribute", "object")
    assert items[0].prompt.metadata["vqa_list"] == RECORDS[0]["vqa_list"]


def test_its_settings_come_from_a_command_line(data: Path) -> None:
    entry = lookup("evaluator", "geneval2")
    given = validate(entry.target, {"data": str(data), "vqascore": "false"}, "evaluator 'geneval2'")
    evaluator = entry.target(**given)
    assert isinstance(evaluator, GenEval2) and not evaluator.vqascore
    digest = hashlib.sha256(data.read_bytes()).hexdigest()[:12]
    judge = f"geneval2 {digest} by Qwen/Qwen3-VL-8B-Instruct in bfloat16 without vqascore"
    assert evaluator.judge_name == judge


def test_says_whether_the_data_is_the_published_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not the published file" in GenEval2(data=data).notes[0]
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    published = geneval2.PUBLISHED.__class__("geneval2", "somewhere", "CC BY-NC 4.0", digest)
    monkeypatch.setattr(geneval2, "PUBLISHED", published)
    assert GenEval2(data=data).notes == [f"The data of geneval2 is the published file, sha256 {digest[:12]}."]
    assert "instead of Qwen/Qwen3-VL-8B-Instruct" in GenEval2(data=data, checkpoint="a/b").notes[1]


@pytest.mark.parametrize("path", [None, "missing.jsonl"])
def test_missing_data_says_where_it_is_published(path: str | None) -> None:
    with pytest.raises(ConfigError, match=r"github.com/facebookresearch/GenEval2.*CC BY-NC 4.0"):
        GenEval2(data=None if path is None else Path(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines(RECORDS).replace("\n", "\r\n"), encoding=encoding)
    assert GenEval2(data=path).items()[1].prompt.text == "a \u201cpig\u201d on a table"


def test_an_encoding_that_says_nothing_of_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(RECORDS).encode("cp1252"))
    with pytest.raises(ConfigError, match="readable file in UTF-8"):
        GenEval2(data=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "a text 'prompt' in each record but line 2 .* has ''"),
        ({"prompt": "three red dogs"}, "distinct prompts but line 2 .* repeats 'three red dogs' of line 1"),
        ({"atom_count": "3"}, "whole number atom_count of at least 1 but line 2 .* has '3'"),
        ({"atom_count": True}, "atom_count"),
        ({"vqa_list": None}, "questions with answers but line 2 .* does not: vqa_list must be a list"),
        ({"vqa_list": [["How many?", "0"], ["Is it?", "Yes"]]}, "line 2 .* must be one of one, two"),
        ({"skills": ["count"]}, "for each of its 2 questions in skills but line 2"),
        ({"skills": ["count", "smell"]}, "one of object, attribute, count, position, verb"),
    ],
)
def test_a_line_that_breaks_the_format_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines([RECORDS[0], RECORDS[1] | change]), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        GenEval2(data=path)


@pytest.mark.parametrize(
    ("text", "message"), [("{]\n", "line 1"), ("[1]\n", "one JSON object"), (" \n", "empty")]
)
def test_a_file_that_is_no_data_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        GenEval2(data=path)


def test_judges_as_the_verifiers_do(data: Path, checkpoint: str, tmp_path: Path) -> None:
    """`test_soft_tifa` computes these masses step by step."""
    evaluator = GenEval2(data=data, checkpoint=checkpoint, batch_size=4, **TINY)
    items, images = evaluator.items(), some_images(3)
    samples = []
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
        samples.append(Sample(items[i], 0, tmp_path / f"{i}.png"))
    verdicts = evaluator.judge(samples)
    prompts = [item.prompt for item in items]
    gm, am = (
        SoftTIFA(mean=mean, checkpoint=checkpoint, **TINY).score(images, prompts)  # type: ignore[arg-type]
        for mean in ("gm", "am")
    )
    whole = VQAScore(variant="geneval2", checkpoint=checkpoint, **TINY).score(images, prompts)
    for i, verdict in enumerate(verdicts):
        assert verdict.values["soft_tifa_gm"] == pytest.approx(gm[i].value, rel=1e-4)
        assert verdict.values["soft_tifa_am"] == pytest.approx(am[i].value, rel=1e-4)
        assert verdict.values["vqascore"] == pytest.approx(whole[i].value, rel=1e-4)
        assert verdict.details["scores"] == pytest.approx(list(gm[i].parts.values()), rel=1e-4)
        assert verdict.values["tifa"] == sum(verdict.details["right"]) / len(verdict.details["right"])
        assert verdict.correct == gm[i].satisfied and verdict.reason == gm[i].reason
        told = zip(RECORDS[i]["skills"], verdict.details["right"])
        assert verdict.faults == Counter(skill for skill, right in told if not right)
    json.dumps([verdict.details for verdict in verdicts])


def test_samples_that_cannot_be_judged_cost_only_themselves(
    data: Path, checkpoint: str, tmp_path: Path
) -> None:
    evaluator = GenEval2(data=data, checkpoint=checkpoint, vqascore=False, **TINY)
    item = evaluator.items()[0]
    good, broken, flat = (tmp_path / name for name in ("good.png", "broken.png", "flat.png"))
    some_images(1)[0].save(good)
    broken.write_bytes(good.read_bytes()[:60])
    some_images(1, (900, 2))[0].save(flat)
    paths = [broken, good, tmp_path / "missing.png", flat]
    verdicts = evaluator.judge([Sample(item, 0, path) for path in paths])
    assert [bool(verdict.values) for verdict in verdicts] == [False, True, False, False]
    assert all(verdict.reason for verdict in (verdicts[0], verdicts[2], verdicts[3]))
    assert "vqascore" not in verdicts[1].values
    assert evaluator.judge([]) == []


def test_a_judge_that_does_not_see_is_refused(
    data: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = GenEval2(data=data, checkpoint=checkpoint, **TINY)
    with pytest.raises(VerifierError, match="a drawn red circle is red and a blue one is not"):
        evaluator.self_test()  # random weights

    def sees(images: Any, questions: Any, spellings: Any) -> list[AnswerMass]:
        assert questions == ["Is the circle red? Answer in one word."] * 2
        return [AnswerMass(image.getpixel((128, 128))[0] / 255 * 0.9, "Yes") for (image,) in images]

    monkeypatch.setattr(evaluator._vlm, "answer_masses", sees)
    assert evaluator.self_test() == "a red circle is red with 0.900, a blue one with 0.000"


def test_figures_by_hand(data: Path) -> None:
    evaluator = GenEval2(data=data)
    judged = judged_by_hand(evaluator, [[0.2, 0.8, 0.5], [0.9, 0.4], [0.7]])
    found = evaluator.summarise(judged, np.ones(3))
    gm = [(0.2 * 0.8 * 0.5) ** (1 / 3), 0.6, 0.7]
    assert next(iter(found)) == evaluator.metric == "soft_tifa_gm"
    assert found == pytest.approx(
        {
            "soft_tifa_gm": sum(gm) / 3,
            "soft_tifa_am": (0.5 + 0.65 + 0.7) / 3,
            "tifa": 0.5,
            "vqascore": 0.25,
            "skill: object": 0.5,
            "skill: attribute": 0.8,
            "skill: count": (0.2 + 0.4) / 2,
            "skill: position": 0.9,
            "skill: verb": 0.7,
            "atoms: 3": (gm[0] + gm[1]) / 2,
            "atoms: 4": 0.7,
        }
    )


def test_weights_count_prompts_as_often(data: Path) -> None:
    evaluator = GenEval2(data=data)
    judged = judged_by_hand(evaluator, [[0.2, 0.8, 0.5], [0.9, 0.4], [0.7]])
    weighted = evaluator.summarise(judged, np.array([2.0, 1.0, 0.0]))
    repeated = evaluator.summarise([judged[0], judged[0], judged[1]], np.ones(3))
    assert {key: value for key, value in weighted.items() if not math.isnan(value)} == pytest.approx(repeated)
    assert math.isnan(weighted["skill: verb"]) and math.isnan(weighted["atoms: 4"])


def test_a_sample_without_verdict_counts_nowhere(data: Path) -> None:
    evaluator = GenEval2(data=data)
    judged = judged_by_hand(evaluator, [[0.2, 0.8, 0.5], [0.9, 0.4]])
    lost = Judged(Sample(evaluator.items()[2], 0, Path("x.png")), Verdict(reason="cannot be read"))
    without = evaluator.summarise(judged, np.ones(2))
    found = evaluator.summarise([*judged, lost], np.ones(3))
    assert {key: value for key, value in found.items() if not math.isnan(value)} == pytest.approx(without)
    assert all(math.isnan(value) for value in evaluator.summarise([lost], np.ones(1)).values())


def released_analysis(data: Path, scores: Path) -> dict[str, float]:
    """Per skill and per atomicity as the paper defines them, from the two files that its script reads."""
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    lists = json.loads(scores.read_text(encoding="utf-8"))
    assert [len(some) for some in lists] == [len(record["vqa_list"]) for record in records]
    found: dict[str, list[float]] = {}
    for record, some in zip(records, lists):
        for skill, score in zip(record["skills"], some, strict=True):
            found.setdefault(f"skill: {skill}", []).append(score)
        gm = math.exp(sum(map(math.log, some)) / len(some))
        found.setdefault(f"atoms: {record['atom_count']}", []).append(gm)
    return {label: sum(values) / len(values) for label, values in found.items()}


def test_score_lists_are_read_back_as_released(data: Path, tmp_path: Path) -> None:
    evaluator = GenEval2(data=data)
    judged = judged_by_hand(evaluator, [[0.2, 0.8, 0.5], [0.9, 0.4], [0.7]])
    (path,) = evaluator.write_results(tmp_path, judged[::-1])  # in the order of the data all the same
    assert path.name == "score_lists.json"
    figures = evaluator.summarise(judged, np.ones(3))
    read = released_analysis(data, path)
    assert read == pytest.approx({key: figures[key] for key in read})


def test_score_lists_of_some_prompts_come_with_their_records(data: Path, tmp_path: Path) -> None:
    evaluator = GenEval2(data=data)
    judged = judged_by_hand(evaluator, [[0.2, 0.8, 0.5], [0.9, 0.4], [0.7]])[1:]
    more = judged_by_hand(evaluator, [[0.1, 0.1, 0.1], [0.3, 0.3], [0.6]], index=1)
    scores, records, second = evaluator.write_results(tmp_path, [*judged, *more])
    assert [p.name for p in (scores, records)] == ["score_lists.json", "benchmark_data.jsonl"]
    assert [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()] == RECORDS[1:]
    assert released_analysis(records, scores)["skill: verb"] == 0.7
    assert second.name == "score_lists_1.json" and released_analysis(data, second)["skill: verb"] == 0.6
    assert GenEval2(data=records).items()[0].prompt.text == RECORDS[1]["prompt"]


def test_reads_what_it_writes(data: Path, tmp_path: Path) -> None:
    evaluator = GenEval2(data=data)
    folder = tmp_path / "samples"
    for item in evaluator.items()[:2]:
        path = folder / f"{evaluator.place(item, 0)}.png"
        path.parent.mkdir(parents=True)
        some_images(1)[0].save(path)
    (written,) = evaluator.write_layout(folder, evaluator.items()[:2])
    generic = evaluator.read_layout(folder)
    mapped = GenEval2(data=data, image_map=written).read_layout(folder)
    assert [s.path.resolve() for s in generic.samples] == [s.path.resolve() for s in mapped.samples]
    assert [s.item.id for s in mapped.samples] == ["00000", "00001"]
    assert len(generic.complaints) == len(mapped.complaints) == 1


def test_the_released_map_of_images(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    here.mkdir()
    for path in (away / "a.png", here / "b.jpg", away / "both.png", here / "both.png"):
        some_images(1)[0].save(path)
    monkeypatch.chdir(here)

    def read(named: dict[str, Any]) -> Any:
        (away / "map.json").write_text(json.dumps(named), encoding="utf-8-sig")
        return GenEval2(data=data, image_map=away / "map.json").read_layout(tmp_path)

    texts = [record["prompt"] for record in RECORDS]
    found = read({texts[0]: "a.png", texts[1]: "b.jpg", texts[2]: str(away / "both.png"), "a bird": "a.png"})
    assert [s.path.name for s in found.samples] == ["a.png", "b.jpg", "both.png"]
    assert found.complaints == ["'a bird': in the map, but no prompt of the data"]
    found = read({texts[0]: "a.png", texts[1]: "both.png", texts[2]: "map.json"})
    assert [s.path.name for s in found.samples] == ["a.png"]
    assert "both beside the map and in the working directory" in found.complaints[0]
    assert "is no image by its name" in found.complaints[1]
    found = read({texts[0]: "a.png"})
    assert len(found.complaints) == 2 and all("not in the map" in line for line in found.complaints)
    with pytest.raises(ConfigError, match="names none"):
        read({"a bird": "a.png"})
    with pytest.raises(ConfigError, match="one path for each prompt"):
        read({texts[0]: ["a.png"]})
    (away / "map.json").write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        GenEval2(data=data, image_map=away / "map.json").read_layout(tmp_path)
    with pytest.raises(ConfigError, match="must be a JSON file"):
        GenEval2(data=data, image_map=away / "none.json").read_layout(tmp_path)
