"""Soft-TIFA: masses against a computation step by step, spellings, means, questions of a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_vlms
import torch
from PIL import Image

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers._soft_tifa import (
    Answers,
    Atom,
    arithmetic_mean,
    ask_atoms,
    atoms_from_list,
    geometric_mean,
)
from tts_vision.verifiers._vlm import MOST_DISTRIBUTIONS, VisionLanguageModel
from tts_vision.verifiers.soft_tifa import SoftTIFA, atoms_of

TINY = {"device": "cpu", "dtype": "float32"}
RECORD = {"vqa_list": [["How many dogs are in the image?", "ten"], ["Are the dogs red?", "Yes"]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlms.qwen_vl(tmp_path_factory.mktemp("soft_tifa"))


@pytest.fixture(scope="module")
def verifier(folder: Path) -> SoftTIFA:
    return SoftTIFA(checkpoint=str(folder), batch_size=3, **TINY)


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(folder), owner="eye", device="cpu", batch_size=4)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, verifier: SoftTIFA) -> SoftTIFA:
        return verifier

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return some_images(4)

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("ten red dogs", RECORD)


def distribution(folder: Path, image: Image.Image, question: str) -> tuple[Any, torch.Tensor]:
    """The tokenizer, and the softmax over the whole vocabulary, by nothing but transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
    return processor.tokenizer, logits.softmax(-1)


def qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL, which the default judge is, with random weights in the published layout."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    words = tiny_vlms.tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    ids = words.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen3VLForConditionalGeneration(config)
    tiny_vlms.randomise(model)
    model.save_pretrained(folder)
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=64 * 64),
        tokenizer=words,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=tiny_vlms.CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(folder)
    return folder


def test_qwen3_vl_is_asked_as_the_released_tool_asks_it(tmp_path: Path) -> None:
    """The chat template by the processor, one greedy token, its scores: as GenEval 2's authors run it."""
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    folder, image = qwen3_vl(tmp_path), some_images(1, (64, 64))[0]
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    expected, said = [], []
    for question, _ in RECORD["vqa_list"]:
        content = [
            {"type": "image", "image": image},
            {"type": "text", "text": f"{question} Answer in one word."},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        expected.append(output.scores[0].softmax(-1)[0])
        said.append(processor.decode(output.sequences[0, -1:]))
    vlm = VisionLanguageModel(str(folder), owner="eye", device="cpu", batch_size=2)
    atoms = atoms_from_list(RECORD["vqa_list"])
    (answers,) = ask_atoms(vlm, [image], [atoms])
    assert isinstance(answers, Answers) and list(answers.said) == said
    for atom, probability, distribution_ in zip(atoms, answers.probabilities, expected):
        first = {processor.tokenizer.encode(spelling)[0] for spelling in atom.spellings}
        assert probability == pytest.approx(float(sum(distribution_[t] for t in first)), rel=1e-3)


def test_an_atom_is_the_mass_of_the_first_tokens_of_the_listed_spellings(
    folder: Path, verifier: SoftTIFA
) -> None:
    image = some_images(1)[0]
    expected = []
    listed = [["ten", "Ten", " ten", " Ten", "10", " 10"], ["Yes", "yes", " yes", " Yes"]]
    for (question, _), spellings in zip(RECORD["vqa_list"], listed):
        tokenizer, probabilities = distribution(folder, image, f"{question} Answer in one word.")
        first = {tokenizer(spelling).input_ids[0] for spelling in spellings}
        expected.append(sum(float(probabilities[token]) for token in first))
    (score,) = verifier.score([image], [Prompt("ten red dogs", RECORD)])
    assert list(score.parts) == ["How many dogs are in the image?", "Are the dogs red?"]
    assert list(score.parts.values()) == pytest.approx(expected, rel=1e-4)
    assert score.value == pytest.approx(math.sqrt(expected[0] * expected[1]), rel=1e-4)
    am = SoftTIFA(checkpoint=str(folder), mean="am", **TINY).score([image], [Prompt("", RECORD)])
    assert am[0].value == pytest.approx(sum(expected) / 2, rel=1e-4) != score.value


def test_a_spelling_of_several_tokens_counts_by_the_first(folder: Path, vlm: VisionLanguageModel) -> None:
    """Ten may be spelled 10, whose first token is that of 1; " 10" begins with a space alone."""
    image = some_images(1)[0]
    tokenizer, probabilities = distribution(folder, image, "?")
    assert tokenizer.convert_ids_to_tokens(tokenizer("10").input_ids) == ["1", "0"]
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 10").input_ids) == ["Ġ", "1", "0"]
    found = vlm.answer_masses([[image]] * 4, ["?"] * 4, [["10"], ["1"], [" 10"], ["10", "1", "1"]])
    one, space = (float(probabilities[tokenizer.convert_tokens_to_ids(token)]) for token in ("1", "Ġ"))
    assert [mass.probability for mass in found] == pytest.approx([one, one, space, one], rel=1e-4)
    assert {mass.greedy for mass in found} == {tokenizer.decode([int(probabilities.argmax())])}


def test_spellings_of_answers() -> None:
    assert Atom("How many cats?", "three").spellings == ("three", "Three", " three", " Three", "3", " 3")
    assert Atom("How many cats?", "ten").spellings[4:] == ("10", " 10")
    assert set(Atom("Is the cat red?", "Yes").spellings) == {"Yes", "yes", " Yes", " yes"}


def test_masses_are_not_normalised(vlm: VisionLanguageModel) -> None:
    images = [[image] for image in some_images(2)]
    yes, no = (vlm.answer_masses(images, ["A dog?"] * 2, [[word]] * 2) for word in ("yes", "no"))
    assert all(0 < y.probability + n.probability < 1 for y, n in zip(yes, no))
    assert vlm.answer_masses([], [], []) == []


def test_more_questions_than_distributions_are_held(vlm: VisionLanguageModel) -> None:
    (image,) = some_images(1, (28, 28))
    n = MOST_DISTRIBUTIONS + 3
    words = [["yes"] if i % 2 else ["two"] for i in range(n)]
    masses = vlm.answer_masses([[image]] * n, [f"Is it {i % 3}?" for i in range(n)], words)
    again = vlm.answer_masses([[image]] * 6, [f"Is it {i % 3}?" for i in range(6)], words[:6])
    assert [mass.probability for mass in masses] == pytest.approx([m.probability for m in again * 12][:n])


def test_an_answer_without_tokens_is_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(VerifierError, match=r"'eye' waits for must begin with a token .* \[''\]"):
        vlm.answer_masses([some_images(1)], ["?"], [[""]])


def test_means() -> None:
    assert arithmetic_mean([0.5, 1.0, 0.0]) == 0.5
    assert geometric_mean([0.25, 1.0]) == 0.5 and geometric_mean([0.0, 1.0]) == 0.0
    assert geometric_mean([1e-200] * 8) == pytest.approx(1e-200)  # no underflow of the product
    answers = Answers((0.9, 0.4), ("three", "no"), (True, False))
    assert (answers.am, answers.gm, answers.tifa) == (0.65, pytest.approx(0.6), 0.5)


def test_tifa_takes_the_greedy_token_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_vision.verifiers._vlm import AnswerMass

    said = ["3", " Three", "three.", "two", "YES", "no"]
    atoms = [Atom("How many cats?", "three")] * 4 + [Atom("Is it red?", "Yes")] * 2
    vlm = VisionLanguageModel("nowhere", owner="eye")
    monkeypatch.setattr(vlm, "answer_masses", lambda *_: [AnswerMass(0.5, token) for token in said])
    (answers,) = ask_atoms(vlm, some_images(1), [atoms])
    assert isinstance(answers, Answers)
    assert answers.right == (True, True, False, False, True, False)


def test_an_image_satisfies_its_prompt_where_all_answers_are_right(
    verifier: SoftTIFA, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_vision.verifiers._vlm import AnswerMass

    told = {"How many": AnswerMass(0.9, "10"), "Are the ": AnswerMass(0.8, " Yes")}
    monkeypatch.setattr(
        verifier._vlm, "answer_masses", lambda images, questions, spellings: [told[q[:8]] for q in questions]
    )
    image, prompt = some_images(1), [Prompt("ten red dogs", RECORD)]
    (score,) = verifier.score(image, prompt)
    assert score.satisfied and score.reason is None and score.value == pytest.approx(math.sqrt(0.72))
    told["How many"] = AnswerMass(0.2, "nine")
    (score,) = verifier.score(image, prompt)
    assert score.satisfied is False
    assert score.reason == "How many dogs are in the image? 'nine', not ten"


def test_questions_of_a_prompt_without_a_list_follow_from_its_form_or_record() -> None:
    assert atoms_of(Prompt("a photo of three red dogs left of a cat")) == [
        Atom("How many dogs are in the image?", "three"),
        Atom("Are there any dogs in the image?", "Yes"),
        Atom("Are the dogs red?", "Yes"),
        Atom("Is there a cat in the image?", "Yes"),
        Atom("Are the dogs to the left of the cat?", "Yes"),
    ]
    record = {"include": [{"class": "bench", "count": 2}], "exclude": [{"class": "bench", "count": 3}]}
    assert atoms_of(Prompt("anything", record))[0] == Atom("How many benches are in the image?", "two")
    many = atoms_of(Prompt("twelve", {"include": [{"class": "dog", "count": 12}]}))
    assert many == [Atom("Are there at least 12 dogs in the image?", "Yes")]
    assert "no questions" in atoms_of(Prompt("the weight of memory"))
    assert atoms_of(Prompt("three dogs", RECORD)) == atoms_from_list(RECORD["vqa_list"])


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], "must be a list"),
        ("How many?", "must be a list"),
        ([["Is it red?"]], "entry 1 of vqa_list"),
        ([["Is it red?", "Yes"], ["Is it?", None]], "entry 2 of vqa_list"),
        ([["How many cats?", "eleven"]], "must be one of one, two, .* but is 'eleven'"),
        ([["How many cats?", "3"]], "must be one of one, two"),
        ([["Is it red?", "yes"]], "must be Yes but is 'yes'"),
        ([["Is it red?", "No"]], "must be Yes but is 'No'"),
    ],
)
def test_lists_that_are_none_cost_only_their_sample(verifier: SoftTIFA, pairs: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        atoms_from_list(pairs)
    bad, good = verifier.score(some_images(2), [Prompt("", {"vqa_list": pairs}), Prompt("", RECORD)])
    assert math.isnan(bad.value) and bad.reason and not math.isnan(good.value)


def test_odd_samples_cost_only_themselves(verifier: SoftTIFA) -> None:
    good = some_images(1)[0]
    odd = [good, clips(1)[0], Image.new("RGB", (900, 2)), Image.new("RGBA", (30, 30), (255, 0, 0, 80)), good]
    scores = verifier.score(odd, [Prompt("", RECORD)] * len(odd))
    (alone,) = verifier.score([good], [Prompt("", RECORD)])
    assert [math.isnan(score.value) for score in scores] == [False, True, True, False, False]
    assert scores[0].value == pytest.approx(alone.value, abs=1e-6) == scores[4].value
    assert verifier.score([], []) == []


def test_a_question_that_is_asked_twice_has_two_parts(verifier: SoftTIFA) -> None:
    twice = {"vqa_list": [["Is it red?", "Yes"]] * 2}
    (score,) = verifier.score(some_images(1), [Prompt("", twice)])
    assert list(score.parts) == ["Is it red?", "Is it red? (2)"]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="mean must be gm or am but got 'hm'"):
        SoftTIFA(mean="hm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="template must contain"):
        SoftTIFA(template="Is it good?")
    assert lookup("verifier", "soft_tifa").target is SoftTIFA
