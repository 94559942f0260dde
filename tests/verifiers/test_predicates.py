from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tts_vision.pipelines.playground.world import load_prompts
from tts_vision.verifiers._predicates import (
    Demands,
    Group,
    Relation,
    article,
    from_record,
    from_text,
    plural,
    singular,
)

# GenEval's objects whose plurals or words are out of the ordinary
OBJECTS = """
    person, airplane, bus, traffic light, fire hydrant, stop sign, parking meter, bench, sheep, skis, zebra,
    wine glass, knife, orange, broccoli, hot dog, couch, potted plant, dining table, mouse, tv remote,
    cell phone, scissors, teddy bear, hair drier, toothbrush, horse, vase, suitcase, giraffe, tie, sandwich
"""


def groups(text: str) -> tuple[Group, ...] | None:
    demands = from_text(text)
    return None if demands is None else demands.groups


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a bench", Demands((Group("bench"),))),
        ("a photo of four handbags", Demands((Group("handbag", 4, 4),))),
        (
            "a photo of a purple wine glass and a black apple",
            Demands((Group("wine glass", colour="purple"), Group("apple", colour="black"))),
        ),
        (
            "a photo of a dog right of a teddy bear",
            Demands((Group("dog"), Group("teddy bear")), (Relation(0, "right of", 1),)),
        ),
        (
            "a photo of two red circles left of a blue star",
            Demands(
                (Group("circle", 2, 2, "red"), Group("star", colour="blue")), (Relation(0, "left of", 1),)
            ),
        ),
        ("A photo of an orange orange.", Demands((Group("orange", colour="orange"),))),
        ("one large wooden table", Demands((Group("table", 1, 1, None, ("large", "wooden")),))),
        ("a dark red car", Demands((Group("car", colour="dark red"),))),
        ("3 dogs, a cat, and two mice", Demands((Group("dog", 3, 3), Group("cat"), Group("mouse", 2, 2)))),
        (
            "a cat is on the left side of a dog",
            Demands((Group("cat"), Group("dog")), (Relation(0, "left of", 1),)),
        ),
        ("a cup on top of a book", Demands((Group("cup"), Group("book")), (Relation(0, "on top of", 1),))),
        (
            "a cup in front of a book",
            Demands((Group("cup"), Group("book")), (Relation(0, "in front of", 1),)),
        ),
        ('a sign that says "Keep Out!"', Demands((Group("sign"),), texts=("Keep Out!",))),
        (
            "a red shop sign with the text 'A and B' and a dog",
            Demands((Group("shop sign", colour="red"), Group("dog")), texts=("A and B",)),
        ),
        ('the word "HELLO"', Demands(texts=("HELLO",))),
    ],
)
def test_the_grammar(text: str, expected: Demands) -> None:
    assert from_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of",
        "sunset over mountains",
        "a man riding a horse on the beach",
        "a dog sits on a mat",
        "a glass of water",
        "a red and blue ball",
        "a black and white cat",
        "a cat left of a dog above a bird",
        "a cat left of a dog and a bird",
        "a dog and a dog",
        "a cat and something",
        "zero dogs",
        "a dog, masterpiece, 8k",
        "a red",
        'a dog "wow" jumping',
        "two",
        "a very big dog",
        "the quick brown fox jumps over the lazy dog",
        "the letters <0>",
        'an empty sign ""',
        # numbers in disguise
        "a dozen eggs",
        "two dozen eggs",
        "a hundred dogs",
        "half a pizza",
        "a couple",
        "two faced man",
        "five star hotel",
        "another dog",
        # what "in" may mean
        "person in hurry",
        "a person in a hurry",
        "two people in a hurry",
        "two cats in a row",
        "a man in a suit and tie",
        "a man in suit and tie",
        "suit and tie",
        "a dog in the morning",
        "a dog in the style",
        "a dog in the rain",
        "a man on the phone",
        "a person on a mission",
        "a man behind the scenes",
        "a dog under the weather",
        "a cat near the end",
        "a bird on top of the world",
        # the image itself, its quality, and names
        "a dog, a masterpiece",
        "a dog, the best quality",
        "a portrait",
        "a close-up photo",
        "a good idea",
        "a dog named max",
        "a man like jesus",
    ],
)
def test_what_says_more_is_not_guessed(text: str) -> None:
    assert from_text(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cake on a plate", (Group("cake"), Group("plate"))),
        ("three men in a red boat", (Group("man", 3, 3), Group("boat", colour="red"))),
        ("a dog is under the stairs", (Group("dog"), Group("stairs"))),
        ("a cat near two dogs", (Group("cat"), Group("dog", 2, 2))),
        ("a red panda and a red apple", (Group("red panda"), Group("apple", colour="red"))),
        ("two black holes", (Group("black hole", 2, 2),)),
        ("a white wine glass", (Group("wine glass", colour="white"),)),
        ("a big glass of", None),
        ("a paper plane and a paper bag", (Group("paper plane"), Group("bag", attributes=("paper",)))),
        ("a traffic light and a sunset", (Group("traffic light"), Group("sunset"))),
        ("five sheep", (Group("sheep", 5, 5),)),
        ("two hot dogs", (Group("hot dog", 2, 2),)),
    ],
)
def test_what_is_plain_is_still_read(text: str, expected: tuple[Group, ...] | None) -> None:
    assert groups(text) == expected


def test_all_quotes_are_read() -> None:
    wanted = Demands((Group("sign"),), texts=("Open",))
    for quoted in ('"Open"', "“Open”", "„Open“", "'Open'", "‘Open’", "«Open»"):
        assert from_text(f"a sign that says {quoted}") == wanted


GENEVAL = Path(__file__).parents[3] / "shared" / "data" / "geneval_evaluation_metadata.jsonl"


@pytest.mark.skipif(not GENEVAL.is_file(), reason="needs GenEval's prompts in ../shared/data")
def test_genevals_prompts_are_read_exactly() -> None:
    """All 553: text and record ask for the same groups and positions; limits are only in the record."""

    def facts(demands: Demands | None) -> Any:
        assert demands is not None
        found = [(group.noun, group.least, group.colour, group.attributes) for group in demands.groups]
        return sorted(found, key=str), [
            (found[r.subject], r.words, found[r.reference]) for r in demands.relations
        ]

    records = [json.loads(line) for line in GENEVAL.read_text().splitlines()]
    assert len(records) == 553
    for record in records:
        assert facts(from_text(record["prompt"])) == facts(from_record(record)), record["prompt"]


def test_genevals_plurals_are_read() -> None:
    for noun in map(str.strip, OBJECTS.split(",")):
        written = noun + ("es" if noun.endswith("s") else "s")
        assert groups(f"a photo of three {written}") == (Group(noun, 3, 3),), written
        assert groups(f"a photo of three {plural(noun)}") == (Group(noun, 3, 3),), plural(noun)
        assert groups(f"a photo of {article(noun)} {noun}") == (Group(noun),)


def test_plurals() -> None:
    pairs = {
        "bench": "benches",
        "person": "people",
        "wine glass": "wine glasses",
        "cherry": "cherries",
        "boy": "boys",
        "knife": "knives",
        "sheep": "sheep",
        "box": "boxes",
        "house": "houses",
        "tie": "ties",
        "computer mouse": "computer mice",
    }
    assert {word: plural(word) for word in pairs} == pairs
    assert {many: singular(many) for many in pairs.values()} == {many: word for word, many in pairs.items()}
    assert [article(word) for word in ("apple", "dog", "umbrella")] == ["an", "a", "an"]


RECORD: dict[str, Any] = {
    "tag": "position",
    "include": [
        {"class": "star", "count": 1, "color": "blue"},
        {"class": "circle", "count": 2, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [{"class": "star", "count": 2}, {"class": "circle", "count": 3}],
    "prompt": "a photo of two red circles left of a blue star",
}


def test_a_record_is_what_geneval_means() -> None:
    assert from_record(RECORD) == Demands(
        (Group("star", 1, 1, "blue"), Group("circle", 2, 2, "red")), (Relation(1, "left of", 0),)
    )
    assert from_record({"include": [{"class": "bench", "count": 1}]}) == Demands((Group("bench"),))
    counting = {
        "include": [{"class": "handbag", "count": 4}],
        "exclude": [
            {"class": "handbag", "count": 5},
            {"class": "dog", "count": 1},
            {"class": "cat", "count": 4},
        ],
    }
    assert from_record(counting) == Demands((Group("handbag", 4, 4), Group("dog", 0, 0), Group("cat", 0, 3)))
    assert from_record({"exclude": [{"class": "dog", "count": 1}]}) == Demands((Group("dog", 0, 0),))
    loose = {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 5}]}
    assert from_record(loose) == Demands((Group("dog", 2, 4),))
    for other in ({}, {"style": "oil"}, {"include": []}):
        assert from_record(other) is None


def test_text_and_record_of_a_prompt_agree() -> None:
    """On the playground's 300 prompts, which come with records; limits on an "a" are only in the record."""

    def facts(demands: Demands | None) -> tuple[Any, Any]:
        assert demands is not None
        groups = [(group.noun, group.least, group.colour) for group in demands.groups]
        return sorted(groups, key=str), [
            (groups[r.subject], r.words, groups[r.reference]) for r in demands.relations
        ]

    for record in load_prompts():
        assert facts(from_text(record["prompt"])) == facts(from_record(record)), record["prompt"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"include": [{"count": 1}]}, "no GenEval record: include.0.class: Field required"),
        ({"include": "a dog"}, "no GenEval record: include: "),
        ({"include": [{"class": "dog", "count": 0}]}, "include.0.count"),
        ({"include": [{"class": "dog", "position": ["above", 1]}]}, "include.0.position names group 1"),
        ({"include": [{"class": "dog", "position": ["above", 0]}]}, "include.0.position names group 0"),
    ],
)
def test_a_spoilt_record_is_named(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_record(metadata)


def said(text: str) -> list[tuple[str, str, str]]:
    demands = from_text(text)
    assert demands is not None
    return [(predicate.kind, predicate.name, predicate.question) for predicate in demands.predicates()]


def test_predicates_are_named_and_asked() -> None:
    assert said("a photo of two red circles left of a blue star") == [
        ("count", "two circles", "Are there exactly two circles in the image?"),
        ("colour", "circles are red", "Are the circles red?"),
        ("object", "star", "Is there a star in the image?"),
        ("colour", "star is blue", "Is the star blue?"),
        ("relation", "circles left of star", "Are the circles to the left of the star?"),
    ]
    assert said('one wooden sign that says "Open" and an apple') == [
        ("count", "one sign", "Is there exactly one sign in the image?"),
        ("attribute", "sign is wooden", "Is the sign wooden?"),
        ("object", "apple", "Is there an apple in the image?"),
        ("text", 'text "Open"', 'Does the image show the text "Open"?'),
    ]


def test_groups_of_one_kind_are_told_apart_by_their_looks() -> None:
    assert said("a red circle above two blue circles") == [
        ("object", "red circle", "Is there a red circle in the image?"),
        ("count", "two blue circles", "Are there exactly two blue circles in the image?"),
        ("relation", "red circle above blue circles", "Is the red circle above the blue circles?"),
    ]


def test_limits_are_said() -> None:
    demands = Demands(
        (Group("dog", 2), Group("cat", 0, 1), Group("bird", 0, 0), Group("cow", 2, 4), Group("ant", 12, 12))
    )
    assert [(p.name, p.question) for p in demands.predicates()] == [
        ("at least two dogs", "Are there at least two dogs in the image?"),
        ("at most one cat", "Is there at most one cat in the image?"),
        ("no birds", "Is it true that there are no birds in the image?"),
        ("two to four cows", "Are there two to four cows in the image?"),
        ("12 ants", "Are there exactly 12 ants in the image?"),
    ]


def test_names_are_never_alike() -> None:
    demands = Demands((Group("dog"), Group("dog")), texts=("a", "a"))
    assert [p.name for p in demands.predicates()] == ["dog", 'text "a"']
    assert Demands().predicates() == []
