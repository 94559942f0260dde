"""The demands of a prompt, as predicates that can be checked one by one.

A prompt becomes `Demands` from its GenEval record, if it has one, or by the grammar of GenEval's prompts
(Ghosh et al. 2023), slightly extended; other prompts are left to a language model. `Demands.predicates` lists
the conditions on an image, each with a readable name and a question whose answer must be yes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from tts_vision.verifiers._lexicon import COMPOUNDS, NO_THINGS, PLACES, QUANTITIES, SENTENCE
from tts_vision.verifiers._quotes import QUOTED

Kind: TypeAlias = Literal["object", "count", "colour", "attribute", "relation", "text"]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
OTHER_COLOURS = {
    "gray",
    "grey",
    "silver",
    "gold",
    "golden",
    "beige",
    "cyan",
    "magenta",
    "teal",
    "turquoise",
    "violet",
}
SHADES = {"light", "dark", "bright", "pale", "deep"}
# sizes and shapes, materials and textures, as T2I-CompBench's prompts name them
_ATTRIBUTES = """
    big small large tiny huge tall short long round square rectangular oval triangular cubic spherical
    wooden metal metallic plastic rubber leather fabric glass paper stone brick fluffy shiny rough smooth
    striped spotted transparent old new broken empty open closed
"""
NUMBERS = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
# how each is said in a question
RELATIONS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "on top of": "on top of",
    "underneath": "underneath",
    "beneath": "beneath",
    "under": "under",
    "next to": "next to",
    "beside": "beside",
    "near": "near",
    "behind": "behind",
    "in front of": "in front of",
    "inside": "inside",
    "on": "on",
    "in": "in",
}
IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "knife": "knives",
    "wolf": "wolves",
    "leaf": "leaves",
    "shelf": "shelves",
    "loaf": "loaves",
    "scarf": "scarves",
    "bus": "buses",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "cookie": "cookies",
    "movie": "movies",
    "lens": "lenses",
    **{word: word for word in ("sheep", "fish", "deer", "skis", "scissors", "trousers", "aircraft")},
}
_SINGULAR = {plural: word for word, plural in IRREGULAR.items()} | {
    "skises": "skis",
    "scissorses": "scissors",
}
_PREFIX = re.compile(r"^(?:(?:a|an|the) )?(?:photo|photograph|picture|image) of ")
_WRITTEN = re.compile(
    r"(?:(?P<group>.+?) (?:(?:that|which) (?:says|reads)|saying|reading|labell?ed|with) )?"
    r"(?:the )?(?:(?:text|words?|letters?|writing) )?<(?P<text>\d+)>"
)
_SIDE = r"(?:(?:to|on|at) the )?(?P<side>left|right)(?: side)? of"
_WORDS = "|".join(sorted((words for words in RELATIONS if not words.endswith("t of")), key=len, reverse=True))
_RELATION = re.compile(rf" (?:is |are )?(?:{_SIDE}|(?P<words>in front of|{_WORDS})) ")
_JOIN = re.compile(r"(?:, and | and |, )")
_ADJECTIVES = frozenset(_ATTRIBUTES.split())
# relations that often say something else than where a thing is
_LOOSE = {"in", "on", "under", "behind", "near"}


@dataclass(frozen=True)
class Group:
    """Things of one kind that a prompt asks for.

    Attributes:
        noun: The kind, in the singular.
        least: How many there must be; 0 if there need be none.
        most: How many there may be; none for any number.
        colour: Of each.
        attributes: Of each.
    """

    noun: str
    least: int = 1
    most: int | None = None
    colour: str | None = None
    attributes: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """The kind with its colour and attributes."""
        return " ".join([*self.attributes, *([self.colour] if self.colour else []), self.noun])


@dataclass(frozen=True)
class Relation:
    """How one group lies to another.

    Attributes:
        subject: Number of the group that is placed.
        words: Such as ``left of``.
        reference: Number of the group to which it is placed.
    """

    subject: int
    words: str
    reference: int


@dataclass(frozen=True)
class Predicate:
    """One condition on an image.

    Attributes:
        kind: Its subject.
        name: Short and readable; no two of a prompt are alike.
        question: A question whose answer must be yes.
        group: Number of the group that it is about; none for written text.
        value: The colour, attribute, relation or text.
        reference: Number of the group to which a relation places.
    """

    kind: Kind
    name: str
    question: str
    group: int | None = None
    value: str = ""
    reference: int | None = None


@dataclass(frozen=True)
class Demands:
    """The demands of a prompt."""

    groups: tuple[Group, ...] = ()
    relations: tuple[Relation, ...] = ()
    texts: tuple[str, ...] = ()

    def shares_noun(self, number: int) -> bool:
        """Whether another group is of the same kind, so that only colour and attributes tell them apart."""
        return [group.noun for group in self.groups].count(self.groups[number].noun) > 1

    def called(self, number: int) -> str:
        """The name of a group: its noun, with colour and attributes if another has the same noun."""
        return self.groups[number].described if self.shares_noun(number) else self.groups[number].noun

    def predicates(self) -> list[Predicate]:
        """The predicates: for each group its number, colour and attributes; then relations and texts."""
        found: list[Predicate] = []
        for i, group in enumerate(self.groups):
            called = self.called(i)
            found.append(_quantity(i, group, called))
            if self.shares_noun(i) or not group.least:
                continue
            be, subject = _verb(group, called)
            if group.colour:
                found.append(_trait("colour", i, be, subject, group.colour))
            found += [_trait("attribute", i, be, subject, word) for word in group.attributes]
        for relation in self.relations:
            be, subject = _verb(self.groups[relation.subject], self.called(relation.subject))
            _, reference = _verb(self.groups[relation.reference], self.called(relation.reference))
            said = RELATIONS.get(relation.words, relation.words)
            found.append(
                Predicate(
                    "relation",
                    f"{subject} {relation.words} {reference}",
                    f"{be.title()} the {subject} {said} the {reference}?",
                    relation.subject,
                    relation.words,
                    relation.reference,
                )
            )
        for text in self.texts:
            found.append(
                Predicate("text", f'text "{text}"', f'Does the image show the text "{text}"?', value=text)
            )
        return list({predicate.name: predicate for predicate in found}.values())


def _quantity(i: int, group: Group, called: str) -> Predicate:
    """How many there must be."""
    many = plural(called)
    least, most = group.least, group.most
    if least == 1 and most is None:
        return Predicate("object", called, f"Is there {article(called)} {called} in the image?", i)
    if most == 0:
        return Predicate("count", f"no {many}", f"Is it true that there are no {many} in the image?", i)
    if least == most == 1:
        return Predicate("count", f"one {called}", f"Is there exactly one {called} in the image?", i)
    if least == most:
        words, exactly = f"{number(least)} {many}", "exactly "
    elif most is None:
        words, exactly = f"at least {number(least)} {many}", ""
    elif not least:
        words, exactly = f"at most {number(most)} {many if most > 1 else called}", ""
    else:
        words, exactly = f"{number(least)} to {number(most)} {many}", ""
    be = "Is" if most == 1 else "Are"
    return Predicate("count", words, f"{be} there {exactly}{words} in the image?", i)


def _verb(group: Group, called: str) -> tuple[str, str]:
    """The verb that goes with a group, and the group in that number."""
    return ("are", plural(called)) if group.least > 1 else ("is", called)


def _trait(kind: Literal["colour", "attribute"], i: int, be: str, subject: str, value: str) -> Predicate:
    return Predicate(kind, f"{subject} {be} {value}", f"{be.title()} the {subject} {value}?", i, value)


# ------------------------------------------------------------------------------------------ GenEval's record


class _Include(BaseModel):
    noun: str = Field(alias="class", min_length=1)
    count: int = Field(default=1, ge=1)
    color: str | None = None
    position: tuple[str, int] | None = None


class _Exclude(BaseModel):
    noun: str = Field(alias="class", min_length=1)
    count: int = Field(default=1, ge=1)


class _Record(BaseModel):
    include: list[_Include] = Field(default_factory=list)
    exclude: list[_Exclude] = Field(default_factory=list)


def from_record(metadata: Mapping[str, Any]) -> Demands | None:
    """The demands of a record in GenEval's schema; none if the metadata is no such record.

    An exclusion of n + 1 limits the one group of its class to n; any other is a demand of its own.

    Raises:
        ValueError: If it has GenEval's keys but does not follow the schema.
    """
    if not metadata.get("include") and not metadata.get("exclude"):
        return None
    try:
        record = _Record.model_validate({key: metadata.get(key) or [] for key in ("include", "exclude")})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"the prompt's metadata is no GenEval record: {where}: {first['msg']}") from error
    nouns = [entry.noun for entry in record.include]
    limits: dict[str, int] = {}
    for excluded in record.exclude:
        limits[excluded.noun] = min(excluded.count - 1, limits.get(excluded.noun, excluded.count))
    groups, relations = [], []
    for i, entry in enumerate(record.include):
        limit = limits.get(entry.noun)
        most = (
            limits.pop(entry.noun)
            if limit and limit >= entry.count and nouns.count(entry.noun) == 1
            else None
        )
        groups.append(Group(entry.noun, entry.count, most, entry.color))
        if entry.position is not None:
            words, reference = entry.position
            if not 0 <= reference < len(nouns) or reference == i:
                where = f"include.{i}.position names group {reference}"
                raise ValueError(f"the prompt's metadata is no GenEval record: {where}")
            relations.append(Relation(i, words, reference))
    groups += [Group(noun, 0, most) for noun, most in limits.items()]
    return Demands(tuple(groups), tuple(relations))


# ----------------------------------------------------------------------------------------------- the grammar


def from_text(text: str) -> Demands | None:
    """The demands of a prompt in the grammar of GenEval's prompts; None if it is beyond that grammar.

    An optional "a photo of", then groups joined by "and" or commas, or two groups joined by a relation. A
    group is an article or a number, attributes and a colour, a noun of one to three words, and perhaps the
    text written on it ('that says "OPEN"'). "A" asks for one or more, a number for just as many.

    A prompt with words that may mean something else is beyond it: numbers in disguise ("a dozen eggs"), nouns
    that name no thing ("in a hurry"), and places that are not known as such.
    """
    if "<" in text:
        return None
    quotes: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        quotes.append(match[match.lastgroup or 0])
        return f"<{len(quotes) - 1}>"

    text = QUOTED.sub(numbered, text)
    if not all(quotes):
        return None
    clean = _PREFIX.sub("", " ".join(text.lower().split()).strip(" .!"))
    placed = list(_RELATION.finditer(clean))
    if len(placed) > 1:
        return None
    if placed:
        (join,) = placed
        parts = [clean[: join.start()], clean[join.end() :]]
    else:
        parts = _JOIN.split(clean)
    groups: list[Group] = []
    texts: list[str] = []
    for part in parts:
        written = _WRITTEN.fullmatch(part)
        if written:
            texts.append(quotes[int(written["text"])])
            part = written["group"] or ""
            if not part and not placed:
                continue
        group = _group(part)
        if group is None:
            return None
        groups.append(group)
    described = [group.described for group in groups]
    if len(set(described)) < len(described) or len(texts) < len(quotes):
        return None
    relations: tuple[Relation, ...] = ()
    if placed:
        words = f"{join['side']} of" if join["side"] else join["words"]
        last = groups[1].noun.split()[-1]
        if words in _LOOSE and not {last, _singular(last)} & PLACES:
            return None
        relations = (Relation(0, words, 1),)
    return Demands(tuple(groups), relations, tuple(texts))


def _group(words: str) -> Group | None:
    tokens = words.split()
    if len(tokens) < 2:
        return None
    first = tokens.pop(0)
    count = int(first) if first.isdecimal() else NUMBERS.get(first)
    if count == 0 or (count is None and first not in {"a", "an", "the"}):
        return None
    colour: str | None = None
    attributes: list[str] = []
    known = {*COLOURS, *OTHER_COLOURS}
    while len(tokens) > 1 and not _is_compound(tokens):
        if tokens[0] in known and colour is None:
            colour = tokens.pop(0)
        elif tokens[0] in SHADES and tokens[1] in known and len(tokens) > 2 and colour is None:
            colour = f"{tokens.pop(0)} {tokens.pop(0)}"
        elif tokens[0] in _ADJECTIVES:
            attributes.append(tokens.pop(0))
        else:
            break
    if not is_noun(tokens):
        return None
    noun = " ".join(tokens)
    if count is None or count == 1:
        return Group(noun, 1, count, colour, tuple(attributes))
    if (
        singular(noun) == noun and IRREGULAR.get(tokens[-1]) != tokens[-1]
    ):  # "five star hotel", "two faced man"
        return None
    return Group(singular(noun), count, count, colour, tuple(attributes))


def _is_compound(tokens: list[str]) -> bool:
    """Whether words are a name whose first word only looks like a colour or an attribute."""
    return singular(" ".join(tokens)) in COMPOUNDS


def is_noun(tokens: list[str]) -> bool:
    """Whether words may name a thing: one to three, none of which belongs to a sentence or a number."""
    return (
        1 <= len(tokens) <= 3
        and all(re.fullmatch(r"[a-z][a-z'-]*", token) for token in tokens)
        and not any(token in SENTENCE or token in NUMBERS or token in QUANTITIES for token in tokens)
        and tokens[-1] not in NO_THINGS
        and not any(token.endswith("ing") for token in tokens[1:])
        and (len(tokens) > 1 or tokens[0] == "orange" or tokens[0] not in {*COLOURS, *OTHER_COLOURS})
    )


# ------------------------------------------------------------------------------------------------- the words


def article(noun: str) -> str:
    """The indefinite article of a noun."""
    return "an" if noun[:1] in set("aeiou") else "a"


def number(n: int) -> str:
    """A number as a word, as far as ten."""
    return next((word for word, value in NUMBERS.items() if value == n), str(n))


def plural(noun: str) -> str:
    """The plural of a noun of several words; its last one changes."""
    head, _, last = noun.rpartition(" ")
    return f"{head} {_plural(last)}".strip()


def singular(noun: str) -> str:
    """The inverse of `plural`; also of GenEval's plurals, which only add s, or es after an s."""
    head, _, last = noun.rpartition(" ")
    return f"{head} {_singular(last)}".strip()


def _plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def _singular(word: str) -> str:
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "zzes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
