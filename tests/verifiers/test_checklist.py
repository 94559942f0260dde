from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_detectors
import tiny_vlms
from chat_server import Answer, asked, nobody_there, serving
from PIL import Image, ImageDraw

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers._detections import located
from tts_vision.verifiers._predicates import Demands, Group, Relation, from_text
from tts_vision.verifiers._vlm import VisionLanguageModel
from tts_vision.verifiers.checklist import Contents, PromptChecklist

KEY = "sk-checklist-secret-42"
FREE = "A sleepy dog dreams under a table while it rains"  # beyond the grammar
CONTENTS: dict[str, Any] = {
    "objects": [
        {"name": "Dog", "count": None, "colour": None, "attributes": ["sleepy"]},
        {"name": "table", "count": 2, "colour": "brown", "attributes": []},
    ],
    "relations": [{"subject": 0, "relation": "under", "object": 1}],
    "texts": ["Open"],
}
NAMES = ["dog", "dog is sleepy", "two tables", "tables are brown", "dog under tables", 'text "Open"']


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checklist")
    tiny_vlms.qwen_vl(folder / "vlm")
    tiny_detectors.mask2former(folder / "mask2former")
    tiny_detectors.grounding_dino(folder / "grounding_dino")
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> VisionLanguageModel:
    """The model by itself; its weights are read once for all tests."""
    return VisionLanguageModel(str(folder / "vlm"), owner="checklist", device="cpu", batch_size=4)


@pytest.fixture
def build(folder: Path, shared: VisionLanguageModel) -> Callable[..., PromptChecklist]:
    def make(**settings: Any) -> PromptChecklist:
        defaults = {"checkpoint": str(folder / "vlm"), "device": "cpu", "dtype": "float32", "batch_size": 4}
        verifier = PromptChecklist(**{**defaults, **settings})
        if verifier._reader is verifier._vlm:
            verifier._reader = shared
        verifier._vlm = shared
        return verifier

    return make


def reading(base_url: str) -> dict[str, Any]:
    return {"base_url": base_url, "model": "reader-1", "retries": 0}


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, build: Callable[..., PromptChecklist]) -> PromptChecklist:
        return build()

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return some_images(4)

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("a photo of two red circles left of a blue star")


QUESTIONS = {
    "two circles": "Are there exactly two circles in the image? Please answer yes or no.",
    "circles are red": "Are the circles red? Please answer yes or no.",
    "star": "Is there a star in the image? Please answer yes or no.",
    "star is blue": "Is the star blue? Please answer yes or no.",
    "circles left of star": "Are the circles to the left of the star? Please answer yes or no.",
}


def test_is_the_mean_of_yes_probabilities(
    build: Callable[..., PromptChecklist], shared: VisionLanguageModel
) -> None:
    image, prompt = some_images(1)[0], Prompt("a photo of two red circles left of a blue star")
    yes = shared.yes_probabilities([[image]] * 5, list(QUESTIONS.values()))
    expected = dict(zip(QUESTIONS, yes, strict=True))
    middle = sum(sorted(yes)[2:4]) / 2
    (mean,) = build(threshold=middle).score([image], [prompt])
    assert mean.parts == pytest.approx(expected, abs=1e-5) and list(mean.parts) == list(QUESTIONS)
    assert mean.value == pytest.approx(sum(yes) / 5, abs=1e-5)
    failed = [name for name, p in expected.items() if p < middle]
    assert mean.reason == f"failed: {'; '.join(failed)}" and len(failed) == 3
    assert mean.satisfied is False and build().checks_demands
    (product,) = build(combine="product", threshold=0.0).score([image], [prompt])
    assert product.value == pytest.approx(math.prod(yes), abs=1e-5)
    assert product.reason is None and product.satisfied is True


def test_all_questions_are_asked_together(
    build: Callable[..., PromptChecklist], shared: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    ask = shared.yes_probabilities

    def counted(images: Any, questions: Any) -> list[float]:
        calls.append((len({id(image) for (image,) in images}), len(questions)))
        return ask(images, questions)

    monkeypatch.setattr(shared, "yes_probabilities", counted)
    prompts = [Prompt("a photo of two red circles left of a blue star"), Prompt("a dog"), Prompt("a red cat")]
    together = build().score(some_images(3), prompts)
    assert calls == [(3, 5 + 1 + 2)]
    alone = [build().score([image], [p])[0] for image, p in zip(some_images(3), prompts)]
    for one, other in zip(together, alone):
        assert one.parts == pytest.approx(other.parts, abs=1e-5)
    calls.clear()
    odd = [*some_images(2), Image.new("RGB", (900, 2))]  # longer than Qwen's processor takes
    scores = build().score(odd, [Prompt("a dog and a cat")] * 3)
    assert [math.isnan(score.value) for score in scores] == [False, False, True]
    assert calls == [(3, 6), (1, 2), (1, 2), (1, 2)]


def test_checklists_that_are_not_used_are_forgotten(
    build: Callable[..., PromptChecklist], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda request: Answer(json.dumps(CONTENTS))) as server:
        verifier = build(**reading(server.base_url))
        verifier._read.capacity = 2
        texts = [f"{FREE} {i}" for i in range(3)]
        assert all(isinstance(c, Demands) for c in verifier.checklists([Prompt(t) for t in texts]))
        assert len(server.requests) == 3 and len(verifier._read) == 2
        verifier.checklists([Prompt(texts[1])])
        verifier.checklists([Prompt(f"{FREE} new")])
        assert list(verifier._read) == [texts[1], f"{FREE} new"] and len(server.requests) == 4


def test_the_question_can_be_another(
    build: Callable[..., PromptChecklist], shared: VisionLanguageModel
) -> None:
    image = some_images(1)[0]
    (score,) = build(template="Look: {question}").score([image], [Prompt("a dog")])
    assert score.value == pytest.approx(
        shared.yes_probabilities([[image]], ["Look: Is there a dog in the image?"])[0], abs=1e-5
    )


def test_a_record_comes_before_the_text(build: Callable[..., PromptChecklist]) -> None:
    record = {"include": [{"class": "bench", "count": 1}], "exclude": [{"class": "dog", "count": 1}]}
    (score,) = build().score(some_images(1), [Prompt("a photo of a cat", record)])
    assert list(score.parts) == ["bench", "no dogs"]
    (score,) = build().score(some_images(1), [Prompt("a cat", {"include": [{"class": ""}]})])
    assert math.isnan(score.value) and "no GenEval record: include.0.class" in (score.reason or "")


def test_a_language_model_reads_what_the_grammar_cannot(build: Callable[..., PromptChecklist]) -> None:
    with serving(lambda request: Answer(f"Sure:\n```json\n{json.dumps(CONTENTS)}\n```")) as server:
        verifier = build(**reading(server.base_url))
        scores = verifier.score(some_images(3), [Prompt(FREE), Prompt("a dog"), Prompt(FREE)])
        assert [list(score.parts) for score in scores] == [NAMES, ["dog"], NAMES]
        assert verifier.score(some_images(1), [Prompt(FREE)])[0] == scores[0]
        (request,) = server.requests  # once for all samples and searches
        assert server.keys == [f"Bearer {KEY}"]
    assert FREE in asked(request) and "{prompt}" not in asked(request)
    assert len(request["messages"][0]["content"]) == 1  # no image is shown
    wanted = request["response_format"]["json_schema"]
    assert wanted == {"name": "checklist", "strict": True, "schema": Contents.model_json_schema()}
    assert verifier.checklists([Prompt(FREE)]) == [
        Demands(
            (Group("dog", attributes=("sleepy",)), Group("table", 2, 2, "brown")),
            (Relation(0, "under", 1),),
            ("Open",),
        )
    ]


def test_a_server_that_knows_no_schema_is_told_none(build: Callable[..., PromptChecklist]) -> None:
    with serving(lambda request: Answer(json.dumps(CONTENTS))) as server:
        build(structured=False, **reading(server.base_url)).score(some_images(1), [Prompt(FREE)])
        assert "response_format" not in server.requests[0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("A dog and a table.", "it holds no JSON object"),
        (json.dumps({**CONTENTS, "objects": [{"name": "dog"}]}), "objects.0.count: Field required"),
        (json.dumps({**CONTENTS, "objects": []}), "relations must join two of 0 objects but got 0 and 1"),
        (json.dumps({"objects": [], "relations": [], "texts": []}), "nothing is listed"),
        (
            json.dumps({**CONTENTS, "relations": [{"subject": 1, "relation": "on", "object": 1}]}),
            "got 1 and 1",
        ),
    ],
)
def test_what_is_no_checklist_is_asked_for_once_more(
    build: Callable[..., PromptChecklist], bad: str, why: str
) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer(bad if len(request["messages"]) == 1 else json.dumps(CONTENTS))

    with serving(answer) as server:
        (score,) = build(**reading(server.base_url)).score(some_images(1), [Prompt(FREE)])
        assert list(score.parts) == NAMES
        assert why in asked(server.requests[1]) and len(server.requests) == 2


@pytest.mark.parametrize(
    "said",
    [
        json.dumps({**CONTENTS, "mood": "calm"}),
        json.dumps({"checklist": CONTENTS}),
        json.dumps([{key: value} for key, value in CONTENTS.items()]),
        f"<think>{{objects: dog}} {json.dumps({'objects': []})}</think>In {{JSON}}:\n{json.dumps(CONTENTS)}",
    ],
)
def test_a_checklist_is_read_at_once_however_it_is_wrapped(
    build: Callable[..., PromptChecklist], said: str
) -> None:
    with serving(lambda request: Answer(said)) as server:
        (score,) = build(**reading(server.base_url)).score(some_images(1), [Prompt(FREE)])
    assert list(score.parts) == NAMES and len(server.requests) == 1


def test_prose_twice_costs_only_that_prompt(build: Callable[..., PromptChecklist]) -> None:
    with serving(lambda request: Answer("I would rather not.")) as server:
        verifier = build(**reading(server.base_url))
        scores = verifier.score(some_images(3), [Prompt(FREE), Prompt("a dog"), Prompt(FREE)])
        assert len(server.requests) == 2
        assert [math.isnan(score.value) for score in scores] == [True, False, True]
        assert "could not be read: the answer does not follow the checklist" in (scores[0].reason or "")
        assert "it said 'I would rather not.'" in (scores[2].reason or "")
        assert isinstance(verifier.checklists([Prompt(FREE)])[0], str)
        assert len(server.requests) == 4  # a failure is not kept


def test_an_endpoint_that_is_down(build: Callable[..., PromptChecklist]) -> None:
    scores = build(**reading(nobody_there())).score(some_images(2), [Prompt(FREE), Prompt("a dog")])
    assert [math.isnan(score.value) for score in scores] == [True, False]
    assert "cannot be reached" in (scores[0].reason or "") and KEY not in (scores[0].reason or "")


def test_checklists_are_kept_on_disk(build: Callable[..., PromptChecklist], tmp_path: Path) -> None:
    with serving(lambda request: Answer(json.dumps(CONTENTS))) as server:
        settings = {**reading(server.base_url), "cache": tmp_path}
        first = build(**settings).checklists([Prompt(FREE), Prompt("a dog")])
        assert build(**settings).checklists([Prompt(FREE), Prompt("a dog")]) == first
        assert len(server.requests) == 1
        (file,) = tmp_path.rglob("*.json")  # the grammar's own need no keeping
        assert KEY not in file.read_text()
        build(**{**settings, "model": "reader-2"}).checklists([Prompt(FREE)])
        assert len(server.requests) == 2
        file.write_text("{}")
        assert build(**settings).checklists([Prompt(FREE)]) == first[:1]
        assert len(server.requests) == 3


def test_the_local_model_reads_prompts(
    build: Callable[..., PromptChecklist], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = build(max_new_tokens=3)
    (babble,) = verifier.score(some_images(1), [Prompt(FREE)])
    assert math.isnan(babble.value) and "does not follow the checklist" in (babble.reason or "")
    shown: list[Any] = []

    def generate(seen: Any, questions: Any, *, max_new_tokens: int) -> list[str]:
        shown.append((list(seen), max_new_tokens))
        return [json.dumps(CONTENTS)] * len(questions)

    monkeypatch.setattr(verifier._reader, "generate", generate)
    (score,) = verifier.score(some_images(1), [Prompt(FREE)])
    assert list(score.parts) == NAMES and shown[0] == ([[]], 3)


@pytest.mark.parametrize("detector", ["mask2former", "grounding_dino"])
def test_a_detector_verifies_what_it_can(folder: Path, detector: Any) -> None:
    verifier = PromptChecklist(
        verify="detector",
        detector=detector,
        detector_checkpoint=str(folder / detector),
        detector_size=64,
        colours="none",
        checkpoint=str(folder / "vlm"),
        device="cpu",
        dtype="float32",
    )
    assert verifier._judge is not None
    image = some_images(1)[0]
    found = verifier._judge.detector.detect([image], [["circle"]], [verifier._judge.cutoffs.others])[0]
    text = "a photo of a circle"
    (score,) = verifier.score([image], [Prompt(text)])
    assert score.parts == {"circle": float(bool(found))}
    assert score.reason == (None if found else "failed: wanted circle, found no circle")
    assert verifier._vlm._model is None  # nobody needed it
    (many,) = verifier.score([image], [Prompt("a photo of one circle and four stars")])
    demands = from_text("a photo of one circle and four stars")
    assert demands is not None
    (findings,) = verifier._judge.checked([image], [demands])
    assert not isinstance(findings, str)
    failed = [name for name, value in many.parts.items() if not value]
    assert many.regions == located(demands, failed, findings.detections, image.size)
    (score,) = verifier.score([image], [Prompt("a wooden circle behind a star")])
    judge = VisionLanguageModel(str(folder / "vlm"), owner="test", device="cpu")
    asked_for = ["Is the circle wooden?", "Is the circle behind the star?"]
    yes = judge.yes_probabilities([[image]] * 2, [f"{q} Please answer yes or no." for q in asked_for])
    assert score.parts["circle is wooden"] == pytest.approx(yes[0], abs=1e-5)
    assert score.parts["circle behind star"] == pytest.approx(yes[1], abs=1e-5)
    assert {score.parts["circle"], score.parts["star"]} <= {0.0, 1.0}
    assert list(score.parts) == ["circle", "circle is wooden", "star", "circle behind star"]


def test_a_class_that_the_detector_does_not_know(folder: Path) -> None:
    verifier = PromptChecklist(
        verify="detector",
        detector="mask2former",
        detector_checkpoint=str(folder / "mask2former"),
        detector_size=64,
        colours="none",
        device="cpu",
    )
    scores = verifier.score(some_images(2), [Prompt("a giraffe"), Prompt("a star")])
    assert [math.isnan(score.value) for score in scores] == [True, False]
    assert "mask2former does not know 'giraffe'; grounding_dino finds" in (scores[0].reason or "")


def test_odd_samples_cost_only_themselves(build: Callable[..., PromptChecklist]) -> None:
    good = some_images(1)[0]
    odd = [
        good,
        clips(1)[0],
        Image.new("RGB", (1, 1), "red"),
        Image.new("RGBA", (30, 30), (255, 0, 0, 80)),
        good.convert("L"),
        Image.new("RGB", (900, 2)),  # longer than Qwen's processor takes
        good,
        good,
    ]
    prompts = [Prompt("a dog")] * len(odd)
    prompts[6] = Prompt('the word "<|image_pad|>"')
    scores = build().score(odd, prompts)
    assert [math.isnan(score.value) for score in scores] == [
        False,
        True,
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    assert "got a clip" in (scores[1].reason or "") and "cannot take" in (scores[5].reason or "")
    assert "<|image_pad|>" in (scores[6].reason or "")
    (alone,) = build().score([good], [Prompt("a dog")])
    assert scores[0].value == pytest.approx(alone.value, abs=1e-6) == scores[7].value
    assert build().score([], []) == []


def test_a_model_that_answers_nan(folder: Path) -> None:
    verifier = PromptChecklist(checkpoint=str(folder / "vlm"), device="cpu", dtype="float32")
    verifier.load()
    verifier._vlm._model.lm_head.weight.fill_(math.nan)
    (score,) = verifier.score(some_images(1), [Prompt("a dog")])
    assert math.isnan(score.value) and score.reason == "the model answered NaN"


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    folder = tiny_vlms.qwen_vl(tmp_path)
    tiny_vlms.rename_key(folder / "model.safetensors", "model.norm.weight", "model.norm.wrong")
    with pytest.raises(VerifierError, match=r"'checklist'.*norm.*wrong"):
        PromptChecklist(checkpoint=str(folder), device="cpu").load()
    with pytest.raises(VerifierError, match="'checklist'"):
        PromptChecklist(verify="detector", detector_checkpoint=str(folder), device="cpu").load()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"verify": "eye"}, "verify must be one of vqa, detector"),
        ({"combine": "sum"}, "combine must be one of mean, product"),
        ({"threshold": 1.5}, "threshold must be in"),
        ({"template": "Yes?"}, "template must contain"),
        ({"model": "m"}, "without base_url"),
        ({"base_url": "http://host/v1"}, "needs the name of a model"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"verify": "detector", "detector": "yolo"}, "detector of checklist must be one of"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptChecklist(**wrong)


def test_is_registered_and_named_on_a_command_line() -> None:
    entry = lookup("verifier", "checklist")
    assert entry.target is PromptChecklist
    given = {"verify": "detector", "combine": "product", "cache": "/tmp/x", "threshold": "0.6"}
    values = validate(entry.target, given, "verifier 'checklist'")
    assert values["cache"] == Path("/tmp/x") and values["threshold"] == 0.6


@pytest.mark.download
def test_real_weights_count_and_name_colours() -> None:
    """Two drawn red circles fit "two red circles" better than "three blue squares"."""
    checkpoint = os.environ.get("TTS_VISION_VLM")
    if not checkpoint:
        pytest.skip("set TTS_VISION_VLM to a checkpoint of an image-text-to-text model")
    drawn = Image.new("RGB", (256, 256), "white")
    for x in (20, 140):
        ImageDraw.Draw(drawn).ellipse((x, 80, x + 96, 176), fill="red")
    verifier = PromptChecklist(checkpoint=checkpoint)
    right, wrong = verifier.score([drawn] * 2, [Prompt("two red circles"), Prompt("three blue squares")])
    assert right.value > 0.5 > wrong.value and right.reason is None
