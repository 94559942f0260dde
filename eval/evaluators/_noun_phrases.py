"""Noun phrases of prompts such as "a red book and a yellow vase", without a language model."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from tts_vision.errors import ConfigError

PhraseRule: TypeAlias = Literal["rule", "spacy"]
SPACY_MODEL = "en_core_web_sm"
MOST = 8
"""Phrases of a prompt that T2I-CompBench asks about."""
_JOIN = re.compile(r",? and |, ")
_DETERMINERS = frozenset({"a", "an", "the", "two", "three", "four", "five", "six", "seven", "eight"})
# words of sentences: a prompt with one of them is beyond the rule
_SENTENCE = """
    is are was were be been being has have had holds hold held with without on in at by to from for under over
    above below behind beside near next into onto through across around against along between that which who
    its their his her it they this these those there as while when where not no or but
"""
_BEYOND = frozenset(_SENTENCE.split())
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_LONGEST = 5


def phrases_by_rule(text: str) -> list[str] | None:
    """The noun phrases of a prompt that is nothing but phrases joined by "and", commas or "of".

    Each is an optional article or number and one to four words. None for any other prompt, such as a
    sentence: the rule has no verbs.
    """
    found = []
    for part in _JOIN.split(text.strip().rstrip(".")):
        for number, phrase in enumerate(part.split(" of ")):
            words = phrase.split()
            if not words or len(words) > _LONGEST or not all(map(_WORD.fullmatch, words)):
                return None
            lower = [word.lower() for word in words]
            if set(lower) & _BEYOND or set(lower[1:]) & _DETERMINERS:
                return None
            if lower[0] in _DETERMINERS and len(words) == 1:
                return None
            if not number and lower[0] not in _DETERMINERS and len(words) == 1:
                return None
            found.append(phrase.strip())
    return found


class SpacyPhrases:
    """The noun chunks of spaCy's small English model, as T2I-CompBench takes them.

    Raises:
        ConfigError: If spaCy or its model is not installed.
    """

    def __init__(self) -> None:
        try:
            import spacy

            self._parse = spacy.load(SPACY_MODEL)
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"phrases=spacy needs spaCy and its model {SPACY_MODEL} but: {error}; install them ('pip "
                f"install spacy', 'python -m spacy download {SPACY_MODEL}') or give phrases=rule."
            ) from error

    def __call__(self, text: str) -> list[str] | None:
        return [str(chunk) for chunk in self._parse(text).noun_chunks] or None
