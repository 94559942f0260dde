"""Benchmarks by questions and lists of prompts: formats, judges, layouts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlms
import torch
from PIL import Image

from samples import some_images
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluator import Evaluator, Item, Judged, Sample, Verdict
from tts_vision.eval.evaluators._blip_vqa import BlipVQA
from tts_vision.eval.evaluators._noun_phrases import SpacyPhrases, phrases_by_rule
from tts_vision.eval.evaluators.dpg_bench import DPGBench, after_dependencies, crops
from tts_vision.eval.evaluators.prompt_lists import DrawBench, GenAIBench, PartiPrompts, UniGenBench
from tts_vision.eval.evaluators.prompts import Prompts, VideoPrompts
from tts_vision.eval.evaluators.t2i_compbench import T2ICompBench
from tts_vision.eval.evaluators.wise import Wise
from tts_vision.registry import entries
from tts_vision.verifiers.vqa_score import VQAScore

OWN = """
import numpy as np

def redness(images, prompts):
    return [float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images]

def short(images, prompts):
    return [0.0]

def broken(images, prompts):
    raise RuntimeError("no such thing")
"""
JPEG = "jpeg_compressibility"
TINY = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], str]:
    """The name of a verifier of the user's own, by its function."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return lambda name: f"{file}@{name}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_vlms.qwen_vl(tmp_path_factory.mktemp("judge")))


def saved(folder: Path, name: str, image: Image.Image | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or some_images(1)[0]).save(path)
    return path


def table_of(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def judged_of(evaluator: Evaluator, samples: Sequence[Sample]) -> list[Judged]:
    return [Judged(s, v) for s, v in zip(samples, evaluator.judge(samples), strict=True)]


def texts(items: Sequence[Item]) -> list[str]:
    return [item.prompt.text for item in items]


def test_all_are_found_by_name() -> None:
    names = {entry.name for entry in entries("evaluator")}
    assert names >= {
        "dpg_bench",
        "drawbench",
        "genai_bench",
        "geneval2",
        "parti_prompts",
        "prompts",
        "t2i_compbench",
        "unigenbench",
        "video_prompts",
        "wise",
    }


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda **k: DrawBench(judge=JPEG, **k), "imagen.research.google"),
        (lambda **k: PartiPrompts(judge=JPEG, **k), "google-research/parti.*Apache-2.0"),
        (GenAIBench, "GenAI-Bench-1600.*Apache-2.0"),
        (lambda **k: UniGenBench(judge=JPEG, **k), "CodeGoat24/UniGenBench"),
        (T2ICompBench, "Karine-Huang/T2I-CompBench.*MIT"),
        (DPGBench, "TencentQQGYLab/ELLA.*Apache-2.0"),
        (Wise, "PKU-YuanGroup/WISE"),
    ],
)
def test_missing_data_says_where_it_is_published(make: Callable[..., Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
    with pytest.raises(ConfigError, match=told):
        make(data=Path("missing"))


# ------------------------------------------------------------------------------ any prompts, any verifier


def test_any_prompts_with_any_verifier(tmp_path: Path, own: Callable[[str], str]) -> None:
    data = tmp_path / "prompts.jsonl"
    records = [
        {"prompt": "a red dog", "kind": ["colour", "animal"]},
        {"prompt": "a cat", "kind": "animal"},
        {"prompt": "a red dog", "kind": ["colour", "animal"]},
    ]
    data.write_text("\n".join(json.dumps(record) for record in records))
    evaluator = Prompts(data=data, judge=own("redness"), tag="kind")
    items = evaluator.items()
    assert texts(items) == ["a red dog", "a cat"] and items[0].tags == ("colour", "animal")
    assert evaluator.notes == ["1 repeated prompts of the file count once."]
    shades = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (200, 100)]
    paths = [saved(tmp_path, f"{i}.png", shade) for i, shade in enumerate(shades)]
    samples = [Sample(items[0], 0, paths[0]), Sample(items[1], 0, paths[1])]
    lost = Sample(items[1], 1, tmp_path / "none.png")
    judged = judged_of(evaluator, [*samples, lost])
    assert [each.verdict.values for each in judged] == [{"score": 200.0}, {"score": 100.0}, {}]
    assert "none.png cannot be read" in (judged[2].verdict.reason or "")
    found = evaluator.summarise(judged, np.array([1.0, 3.0, 1.0]))
    assert found == {"score": 125.0, "colour": 200.0, "animal": 125.0}
    assert evaluator.judge([]) == []


def test_a_verifier_with_parameters(tmp_path: Path, checkpoint: str) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text("a dog")
    text = f"vqa_score:variant=geneval2;checkpoint={checkpoint};device=cpu;dtype=float32"
    evaluator = Prompts(data=data, judge=text)
    image = some_images(1)[0]
    sample = Sample(evaluator.items()[0], 0, saved(tmp_path, "a.png", image))
    (verdict,) = evaluator.judge([sample])
    expected = VQAScore(variant="geneval2", checkpoint=checkpoint, **TINY).score(
        [image], [sample.item.prompt]
    )
    assert verdict.values["score"] == pytest.approx(expected[0].value) and verdict.correct is None
    assert evaluator.judge_name.endswith(f" by {text.replace(';', ',')}")
    data.write_text("a cat")
    other = Prompts(data=data, judge=text)  # the first of other prompts, and the same image
    assert other.judge_name != evaluator.judge_name


def test_a_verifier_that_checks_demands_says_what_is_correct(tmp_path: Path, checkpoint: str) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"prompt": "a dog", "vqa_list": [["Is there a dog?", "Yes"]]}))
    text = f"soft_tifa:checkpoint={checkpoint};device=cpu;dtype=float32"
    evaluator = Prompts(data=data, judge=text)
    (verdict,) = evaluator.judge([Sample(evaluator.items()[0], 0, saved(tmp_path, "a.png"))])
    assert verdict.correct is not None and list(verdict.details["parts"]) == ["Is there a dog?"]


def test_verifiers_that_cannot_judge_are_refused(tmp_path: Path, own: Callable[[str], str]) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text("a dog")
    with pytest.raises(ConfigError, match="needs a verifier as its judge"):
        Prompts(data=data)
    with pytest.raises(ConfigError, match="needs a file of prompts"):
        Prompts(judge=JPEG)
    with pytest.raises(ConfigError, match="compares the samples of one call"):
        Prompts(data=data, judge="ensemble(jpeg_compressibility, aesthetic):how=rank")
    with pytest.raises(ConfigError, match="must take videos but 'clip_score' takes image"):
        VideoPrompts(data=data, judge="clip_score")
    with pytest.raises(ConfigError, match="tag must be a column"):
        Prompts(data=data, judge=JPEG, tag="kind")
    item = Prompts(data=data, judge=JPEG).items()[0]
    samples = [Sample(item, i, saved(tmp_path, f"{i}.png")) for i in range(2)]
    with pytest.raises(VerifierError, match="one score per sample"):
        Prompts(data=data, judge=own("short")).judge(samples)
    with pytest.raises(VerifierError, match="raised RuntimeError: no such thing"):
        Prompts(data=data, judge=own("broken")).judge(samples)


def test_drawbench_and_partiprompts(tmp_path: Path) -> None:
    draw = tmp_path / "draw.csv"
    rows = [["Prompts", "Category"], ["A red, big car", "Colors"], ["Two cats", "Counting"]]
    draw.write_text(table_of([*rows, rows[1]]), encoding="utf-8-sig")
    items = DrawBench(data=draw, judge=JPEG).items()
    assert texts(items) == ["A red, big car", "Two cats"] and items[1].tags == ("Counting",)
    parti = tmp_path / "parti.tsv"
    rows = [["Prompt", "Category", "Challenge", "Note"], ["bond", "Abstract", "Basic", ""]]
    parti.write_text(table_of(rows, "\t"))
    (item,) = PartiPrompts(data=parti, judge=JPEG).items()
    assert item.prompt.text == "bond" and item.tags == ("category: Abstract", "challenge: Basic")
    draw.write_text("Prompt,Category\na,b\n")
    with pytest.raises(ConfigError, match=r"columns Prompts, Category but line 1 .* lacks Prompts"):
        DrawBench(data=draw, judge=JPEG)
    draw.write_text("Prompts,Category\na,b\nc\n")
    with pytest.raises(ConfigError, match=r"2 cells in each row but line 3 .* has 1"):
        DrawBench(data=draw, judge=JPEG)
    draw.write_text("Prompts,Category\na,b,c\n")
    with pytest.raises(ConfigError, match=r"line 2 .* has 3"):
        DrawBench(data=draw, judge=JPEG)
    draw.write_text("Prompts,Category\n ,b\n")
    with pytest.raises(ConfigError, match="a text 'Prompts' in each record but line 2"):
        DrawBench(data=draw, judge=JPEG)


def genai(tmp_path: Path) -> dict[str, Path]:
    data, skills = tmp_path / "genai_image.json", tmp_path / "genai_skills.json"
    records = {
        "00000": {
            "id": "00000",
            "prompt": "a baker",
            "prompt in Chinese": "面包师",
            "models": {"A": [5, 5, 5]},
        },
        "00001": {"id": "00001", "prompt": "two bakers", "prompt in Chinese": "", "models": {}},
    }
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    skills.write_text(json.dumps({"basic": [0], "counting": [1], "all": [0, 1]}))
    return {"data": data, "skills": skills}


def test_genai_bench(tmp_path: Path) -> None:
    evaluator = GenAIBench(**genai(tmp_path))
    items = evaluator.items()
    assert [item.tags for item in items] == [("basic", "all"), ("counting", "all")]
    assert evaluator.verifier_text == "vqa_score:variant=qwen2.5-vl"
    folder = tmp_path / "images"
    saved(folder, "00000.jpeg")
    saved(folder, "00000_1.png")
    saved(folder, "00007.jpeg")
    found = evaluator.read_layout(folder)
    assert [(s.item.id, s.index) for s in found.samples] == [("00000", 0), ("00000", 1)]
    assert len(found.complaints) == 2
    assert [evaluator.place(items[0], i) for i in range(2)] == ["00000", "00000_1"]
    (tmp_path / "genai_image.json").write_text('{"00000": {"prompt": 3}}')
    with pytest.raises(ConfigError, match="record '00000'"):
        GenAIBench(data=tmp_path / "genai_image.json")
    (tmp_path / "genai_image.json").write_text('{\n"00000": ')
    with pytest.raises(ConfigError, match="be JSON but line 2"):
        GenAIBench(data=tmp_path / "genai_image.json")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_unigenbench(tmp_path: Path, language: str) -> None:
    keys = {"en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")}[language]
    cell = {keys[0]: ["Style", "Attribute - Color"], keys[1]: ["ink", "a red fox"]}
    data = tmp_path / "test.csv"
    header = ["index", f"prompt_{language}", f"sub_dims_{language}"]

    def write(cell: Any, index: str = "4") -> None:
        rows = [header, [index, "a red fox in ink", json.dumps(cell, ensure_ascii=False)]]
        data.write_text(table_of(rows), encoding="utf-8")

    write(cell)
    evaluator = UniGenBench(data=data, language=language, judge=JPEG)  # type: ignore[arg-type]
    (item,) = evaluator.items()
    assert item.id == "4" and item.tags == ("Style", "Attribute", "Attribute - Color")
    folder = tmp_path / "images"
    for number in range(4):
        saved(folder, f"{evaluator.place(item, number)}.png")
    assert [s.path.name for s in evaluator.read_layout(folder).samples] == [f"4_{i}.png" for i in range(4)]
    write({**cell, keys[1]: ["ink"]})
    with pytest.raises(ConfigError, match="describe each of its test points but line 2"):
        UniGenBench(data=data, language=language, judge=JPEG)  # type: ignore[arg-type]
    write(cell, index="x")
    with pytest.raises(ConfigError, match="a number in the column index but line 2"):
        UniGenBench(data=data, language=language, judge=JPEG)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- T2I-CompBench


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("rubber sole shoes and fluffy clouds", ["rubber sole shoes", "fluffy clouds"]),
        ("an oval sink and a rectangular mirror.", ["an oval sink", "a rectangular mirror"]),
        ("a red book, a blue car, and two dogs", ["a red book", "a blue car", "two dogs"]),
        ("a cubic block and a tube of hand cream", ["a cubic block", "a tube", "hand cream"]),
        ("The glass vase and metallic stand display the wooden flowers on the fabric dresser.", None),
        ("A small kitten and a big dog sat side by side.", None),
        ("A dog is chasing its tail and having a playful moment.", None),
        ("the", None),
        ("dogs", None),
    ],
)
def test_noun_phrases_by_rule(text: str, phrases: list[str] | None) -> None:
    assert phrases_by_rule(text) == phrases


def tiny_blip(folder: Path) -> str:
    """A BLIP for visual questions, with random weights, saved as the published ones are."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForQuestionAnswering, BlipImageProcessor
    from transformers import BlipProcessor as Processor

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "red", "book", "vase", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = BlipConfig(
        text_config={
            **sizes,
            "vocab_size": len(words) + 2,
            "encoder_hidden_size": 32,
            "bos_token_id": len(words),
            "pad_token_id": 0,
            "sep_token_id": 3,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    model = BlipForQuestionAnswering(config)
    tiny_vlms.randomise(model)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    Processor(image_processor=BlipImageProcessor(size=size), tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_blip(tmp_path_factory.mktemp("blip") / "vqa")


def by_steps(folder: str, image: Image.Image, question: str) -> float:
    """P(yes) against no of the first token, with nothing but transformers."""
    from transformers import BlipForQuestionAnswering, BlipProcessor

    processor = BlipProcessor.from_pretrained(folder)
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    inputs = processor(images=image, text=question, return_tensors="pt")
    inputs["input_ids"][0, 0] = 13  # [ENC], the last of 14 tokens; [DEC] is 12
    with torch.no_grad():
        seen = model.vision_model(inputs["pixel_values"])[0]
        asked = model.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=seen,
        )[0]
        start = torch.tensor([[12]])
        logits = model.text_decoder(input_ids=start, encoder_hidden_states=asked).logits[0, 0]
    yes, no = logits.softmax(-1)[[5, 6]].tolist()
    return float(yes / (yes + no))


def test_blip_answers_as_its_parts_do(blip: str) -> None:
    model = BlipVQA(blip, owner="eye", device="cpu", batch_size=2)
    images = [*some_images(2, (40, 32)), *some_images(1, (20, 50), seed=2)]
    questions = ["a red book?", "a vase?", "a red red red vase?"]
    found = model.yes_probabilities(images, questions)
    assert found == pytest.approx([by_steps(blip, i, q) for i, q in zip(images, questions)], abs=1e-4)
    assert len({round(value, 4) for value in found}) == 3
    assert model.yes_probabilities([], []) == []


def test_attribute_binding_is_a_product_over_phrases(tmp_path: Path, blip: str) -> None:
    data = tmp_path / "color_val.txt"
    lines = ["a red book and a vase", "A dog is chasing its tail.", "a red book and a vase"]
    data.write_text("\n".join(lines))
    evaluator = T2ICompBench(data=data, checkpoint=blip, device="cpu")
    items = evaluator.items()
    assert texts(items) == lines[:2] and items[0].tags == ("color",)
    assert any("1 of 2 prompts are beyond it" in note for note in evaluator.notes)
    image = some_images(1)[0]
    samples = [Sample(item, 0, saved(tmp_path, f"{item.id}.png", image)) for item in items]
    good, beyond, lost = evaluator.judge([*samples, Sample(items[0], 1, tmp_path / "none.png")])
    each = [round(by_steps(blip, image, question), 4) for question in ("a red book?", "a vase?")]
    assert good.values["score"] == pytest.approx(each[0] * each[1], abs=2e-4)
    assert list(good.details["phrases"]) == ["a red book", "a vase"]
    assert not beyond.values and "phrases=spacy" in (beyond.reason or "") and not lost.values
    (path,) = evaluator.write_results(tmp_path, [Judged(samples[0], good), Judged(samples[1], beyond)])
    assert json.loads(path.read_text()) == [{"question_id": 0, "answer": f"{good.values['score']:.4f}"}]


def test_layout_of_t2i_compbench(tmp_path: Path) -> None:
    data = tmp_path / "texture_val.txt"
    data.write_text("a wooden toy and a glass jar\na rubber band and a metallic key\n")
    evaluator = T2ICompBench(data=data)
    first, second = evaluator.items()
    folder = tmp_path / "out"
    places = [(first, 0), (first, 1), (second, 0)]
    names = [evaluator.place(item, index) for item, index in places]
    assert names[2] == "samples/a rubber band and a metallic key_000010"
    for name in names:
        saved(folder, f"{name}.png")
    saved(folder, "samples/a bird_000003.png")
    found = evaluator.read_layout(folder)
    assert [(s.item.id, s.index) for s in found.samples] == [("00000", 0), ("00000", 1), ("00001", 0)]
    assert found.complaints == ["a bird_000003.png: no prompt of the data has this name"]
    with pytest.raises(ConfigError, match="has none"):
        evaluator.read_layout(tmp_path / "nowhere")


def test_categories_of_t2i_compbench(tmp_path: Path) -> None:
    for name in ("spatial_val.txt", "3d_spatial_val.txt", "numeracy_val.txt", "complex_val.txt"):
        (tmp_path / name).write_text("a dog")
        with pytest.raises(ConfigError, match="UniDet"):
            T2ICompBench(data=tmp_path / name)
    (tmp_path / "mine.txt").write_text("a red dog and a blue cat")
    with pytest.raises(ConfigError, match="category must be one of color, shape, texture, non_spatial"):
        T2ICompBench(data=tmp_path / "mine.txt")
    assert T2ICompBench(data=tmp_path / "mine.txt", category="shape").items()[0].tags == ("shape",)
    (tmp_path / "non_spatial_val.txt").write_text("A dog is chasing its tail.")
    assert T2ICompBench(data=tmp_path / "non_spatial_val.txt").category == "non_spatial"


def test_non_spatial_is_the_cosine_of_clip(tmp_path: Path, own: Callable[[str], str]) -> None:
    data = tmp_path / "non_spatial_val.txt"
    data.write_text("A dog is chasing its tail.")
    evaluator = T2ICompBench(data=data, clip=own("redness"))
    sample = Sample(evaluator.items()[0], 0, saved(tmp_path, "a.png", Image.new("RGB", (8, 8), (31, 0, 0))))
    (verdict,) = evaluator.judge([sample])
    assert verdict.values == {"score": 0.31}
    assert "ViT-B-32-quickgelu,pretrained=openai" in T2ICompBench(data=data).judge_name


def test_spacy_is_asked_for_by_name() -> None:
    try:
        import spacy

        spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        with pytest.raises(ConfigError, match="phrases=spacy needs spaCy and its model en_core_web_sm"):
            SpacyPhrases()
        return
    assert SpacyPhrases()("a red book and a yellow vase") == ["a red book", "a yellow vase"]


# -------------------------------------------------------------------------------------------- DPG-Bench

DPG_HEADER = [
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
]


def dpg_row(item: str, number: int, dependency: str, kind: str = "entity - whole (dog)") -> list[str]:
    return [item, f"text of {item}", "", str(number), dependency, "", "", kind, f"Question {number}?"]


DPG_ROWS = [
    dpg_row("COCOval2014000000032760", 1, "0"),
    dpg_row("COCOval2014000000032760", 2, "1", "attribute - color (dog, red)"),
    dpg_row("COCOval2014000000032760", 3, "2", "attribute - size (dog, big)"),
    dpg_row("partiprompts12", 1, "0"),
    dpg_row("partiprompts12", 2, "0, 1", "global - (photo)"),
]


def dpg_file(folder: Path, rows: Sequence[Sequence[str]] = DPG_ROWS) -> Path:
    path = folder / "dpg_bench.csv"
    path.write_text(table_of([DPG_HEADER, *rows]))
    return path


def with_answers(evaluator: DPGBench, monkeypatch: pytest.MonkeyPatch, answers: list[float]) -> list[str]:
    """Lets the model of an evaluator give these probabilities; the questions that it is asked."""
    asked: list[str] = []

    def answer(images: Sequence[Any], questions: Sequence[str]) -> list[float]:
        asked.extend(questions)
        return answers[: len(questions)]

    monkeypatch.setattr(evaluator._vlm, "yes_probabilities", answer)
    return asked


def test_a_no_zeroes_the_questions_that_depend_on_it() -> None:
    chain = [{"id": 1, "dependencies": []}, {"id": 2, "dependencies": [1]}, {"id": 3, "dependencies": [2]}]
    assert after_dependencies(chain, [True, False, True]) == [True, False, False]
    assert after_dependencies(chain, [False, True, True]) == [False, False, False]  # on and on
    assert after_dependencies(chain[::-1], [True, True, False]) == [True, False, False]  # in the file's order


def test_dpg_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = DPGBench(data=dpg_file(tmp_path))
    items = evaluator.items()
    assert texts(items) == ["text of COCOval2014000000032760", "text of partiprompts12"]
    path = saved(tmp_path, "a.png")
    asked = with_answers(evaluator, monkeypatch, [0.9, 0.2, 0.8])
    judged = judged_of(evaluator, [Sample(items[0], 0, path)])
    assert asked == [f"Question {i}? Please answer yes or no." for i in (1, 2, 3)]
    assert judged[0].verdict.values == {"dpg": pytest.approx(1 / 3)} and judged[0].verdict.correct is False
    assert judged[0].verdict.reason == "no: Question 2?" and judged[0].verdict.faults == {"attribute": 1}
    with_answers(evaluator, monkeypatch, [0.7, 0.6])
    judged += judged_of(evaluator, [Sample(items[1], 0, path), Sample(items[1], 1, tmp_path / "none.png")])
    assert judged[1].verdict.correct and not judged[2].verdict.values
    found = evaluator.summarise(judged, np.ones(3))
    assert found == pytest.approx(
        {
            "dpg": (1 / 3 + 1) / 2,
            "attribute": 0.5,  # of the answers themselves, as released
            "entity": 1.0,
            "global": 1.0,
            "attribute - color": 0.0,
            "attribute - size": 1.0,
            "entity - whole": 1.0,
            "global -": 1.0,
        }
    )
    weighted = evaluator.summarise(judged, np.array([3.0, 1.0, 0.0]))
    assert weighted["dpg"] == pytest.approx((3 * 1 / 3 + 1) / 4)
    assert any("mPLUG-large" in note for note in evaluator.notes)


def test_the_first_row_is_read_unless_strict(tmp_path: Path) -> None:
    strict = DPGBench(data=dpg_file(tmp_path), strict=True)
    sample = Sample(strict.items()[0], 0, saved(tmp_path, "a.png"))
    (verdict,) = strict.judge([sample])
    assert not verdict.values and "question 2 depends on one that was left out" in (verdict.reason or "")
    assert "without its first row" in strict.notes[1]
    lone = dpg_file(tmp_path, DPG_ROWS[3:4] + DPG_ROWS[:3])
    assert texts(DPGBench(data=lone, strict=True).items()) == ["text of COCOval2014000000032760"]
    assert len(DPGBench(data=lone).items()) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (dpg_row("partiprompts12", 2, "0"), "distinct proposition_ids but line 7"),
        (dpg_row("partiprompts12", 3, "x"), "whole numbers in proposition_id and dependency but line 7"),
        (dpg_row("partiprompts12", 3, "9"), "lacks one that 3 depends on"),
        (["partiprompts12", "other", *dpg_row("", 3, "0")[2:]], "one text for each item_id but line 7"),
    ],
)
def test_rows_that_break_the_format_are_named(tmp_path: Path, row: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DPGBench(data=dpg_file(tmp_path, [*DPG_ROWS, row]))


def test_grids_and_layout_of_dpg_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Image.new("RGB", (8, 6))
    for i, colour in enumerate(("red", "green", "blue", "white")):
        grid.paste(colour, (4 * (i % 2), 3 * (i // 2), 4 * (i % 2) + 4, 3 * (i // 2) + 3))
    assert [crop.getpixel((1, 1)) for crop in crops(grid, 4)] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    assert crops(grid, 1) == [grid]
    evaluator = DPGBench(data=dpg_file(tmp_path), pictures=2)
    folder = tmp_path / "images"
    saved(folder, "COCOval2014000000032760.png", grid)
    saved(folder, "partiprompts12_1.png", grid)
    found = evaluator.read_layout(folder)
    assert [(s.item.id, s.index) for s in found.samples] == [
        ("COCOval2014000000032760", 0),
        ("partiprompts12", 1),
    ]
    with_answers(evaluator, monkeypatch, [0.9, 0.9, 0.9, 0.9, 0.1, 0.9])
    (verdict,) = evaluator.judge(found.samples[:1])
    assert verdict.values["dpg"] == pytest.approx((1 + 1 / 3) / 2) and verdict.correct is False
    with pytest.raises(ConfigError, match="pictures must be from 1 to 4"):
        DPGBench(data=dpg_file(tmp_path), pictures=5)


def test_a_judge_that_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = DPGBench(data=dpg_file(tmp_path))
    asked = with_answers(evaluator, monkeypatch, [0.9, 0.1])
    assert evaluator.self_test() == "a red circle is red with 0.900, a blue one with 0.100"
    assert asked == ["Is the circle red? Please answer yes or no."] * 2
    with_answers(evaluator, monkeypatch, [0.9, 0.95])
    with pytest.raises(VerifierError, match=r"but gives yes 0.900 and 0.950"):
        evaluator.self_test()


def test_dpg_bench_asks_a_model(tmp_path: Path, checkpoint: str) -> None:
    evaluator = DPGBench(data=dpg_file(tmp_path), checkpoint=checkpoint, **TINY)
    image = some_images(1)[0]
    sample = Sample(evaluator.items()[1], 0, saved(tmp_path, "a.png", image))
    (verdict,) = evaluator.judge([sample])
    template = "Question {prompt}? Please answer yes or no."
    from tts_vision.types import Prompt

    verifier = VQAScore(template=template, checkpoint=checkpoint, **TINY)
    expected = [s.value for s in verifier.score([image] * 2, [Prompt("1"), Prompt("2")])]
    assert verdict.details["probabilities"] == pytest.approx(expected, rel=1e-4)
    assert verdict.details["answers"] == [value > 0.5 for value in expected]


# ------------------------------------------------------------------------------------------------- WISE

WISE = [
    {"Category": category, "prompt_id": number}
    for number, category in enumerate(
        ("Cultural knowledge", "time", "Space", "Biology", "Physical Knowledge", "Chemistry"), 1
    )
]


def wise_file(folder: Path, change: dict[str, Any] | None = None) -> Path:
    path = folder / "wise.json"
    records = [
        {"Prompt": f"{{prompt}} {r['prompt_id']}", "Explanation": "It is {prompt}.", **r} for r in WISE
    ]
    records = [{**record, "Subcategory": "Any"} for record in records]
    records[1] |= change or {}
    path.write_text(json.dumps(records))
    return path


def test_wise_asks_an_endpoint(tmp_path: Path) -> None:
    from chat_server import Answer, asked, serving

    def answer(request: dict[str, Any]) -> Answer:
        text = request["messages"][0]["content"][-1]["text"]
        if "{prompt} 3\n" in text:
            return Answer('{"consistency": 3, "realism": 0, "aesthetic_quality": 0}')
        return Answer('```json\n{"consistency": 2, "realism": 1, "aesthetic_quality": 0}\n```')

    with serving(answer) as server:
        evaluator = Wise(data=wise_file(tmp_path), base_url=server.base_url, judge="judge")
        items = evaluator.items()
        path = saved(tmp_path, "a.png")
        judged = judged_of(evaluator, [Sample(item, 0, path) for item in items])
        texts_sent = "".join(map(asked, server.requests))
        assert "Prompt: {prompt} 1\nExplanation: It is {prompt}." in texts_sent
    score = (0.7 * 2 + 0.2 * 1) / 2
    assert [each.verdict.values.get("wiscore") for each in judged] == pytest.approx(
        [score, score, None, score, score, score]
    )
    assert "less than or equal to 2" in (judged[2].verdict.reason or "")
    found = evaluator.summarise(judged, np.ones(6))
    assert found["wiscore"] == pytest.approx(score) and math.isnan(found["overall"])
    judged[2] = Judged(judged[2].sample, Verdict({"wiscore": 0.0}))
    found = evaluator.summarise(judged, np.ones(6))
    assert found["overall"] == pytest.approx(score * (1 - 0.133)) and found["space"] == 0
    assert list(found)[:2] == ["wiscore", "overall"]
    assert any("GPT-4o-2024-05-13" in note for note in evaluator.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Category": "History"}, "Category of .* but record 2 .* has 'History'"),
        ({"prompt_id": 1}, "distinct prompt_ids but record 2 .* repeats 1 of record 1"),
        ({"prompt_id": "2"}, "whole number prompt_id but record 2"),
        ({"Explanation": None}, "a text 'Explanation' in each record but record 2"),
    ],
)
def test_records_of_wise_that_break_the_format(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wise(data=wise_file(tmp_path, change))
    with pytest.raises(ConfigError, match="together or neither"):
        Wise(data=wise_file(tmp_path), judge="gpt")


def test_wise_on_this_machine_and_its_layout(tmp_path: Path, checkpoint: str) -> None:
    evaluator = Wise(data=wise_file(tmp_path), checkpoint=checkpoint, max_new_tokens=4, **TINY)
    folder = tmp_path / "images"
    saved(folder, "2.png")
    found = evaluator.read_layout(folder)
    assert [s.item.id for s in found.samples] == ["2"] and len(found.complaints) == 5
    (verdict,) = evaluator.judge(found.samples)
    assert not verdict.values and "does not follow the marks" in (verdict.reason or "")
