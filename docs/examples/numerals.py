"""A rewriter: other wordings of a prompt, for prompt_search."""

from tts_vision.plugins import register

NUMBERS = {"two": ("2", "exactly two", "a pair of"), "three": ("3", "exactly three", "a group of three")}


@register("rewriter", "numerals")
def numerals(text: str, n: int) -> list[str]:
    """The numbers of the prompt in other words."""
    found = [
        " ".join([*words[:i], other, *words[i + 1 :]])
        for words in [text.split()]
        for i, word in enumerate(words)
        for other in NUMBERS.get(word, ())
    ]
    return found[:n]
