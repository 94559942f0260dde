"""A word-level tokenizer over the world's vocabulary, in the transformers format."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from tts_vision.pipelines.playground import world

MAX_TOKENS = 16
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_PLAIN = ("a", "an", "photo", "of", "and", "left", "right", "above", "below", "to", "on", "the", "is", "side")


def vocabulary() -> dict[str, int]:
    """Every token with its id; the padding token is 0."""
    words = [
        PAD,
        END,
        UNKNOWN,
        *_PLAIN,
        *world.NUMBERS,
        *world.COLOURS,
        *world.SHAPES,
        *world.PLURALS.values(),
    ]
    return {word: i for i, word in enumerate(words)}


def build_tokenizer(
    padding_side: str = "left", opened: bool = False, more: Sequence[str] = (), length: int = MAX_TOKENS
) -> PreTrainedTokenizerFast:
    """A tokenizer that lower-cases, splits on spaces and punctuation, and closes every text with `</s>`.

    Args:
        padding_side: Where padding goes; the flow's pipeline pads on the left.
        opened: Begin every text with `</s>` too, for models that read out the first token.
        more: Words behind those of `vocabulary`.
        length: Most tokens of a text.

    Returns:
        The tokenizer; "" becomes one token.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary()
    words |= {word: len(words) + i for i, word in enumerate(more)}
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}" if opened else f"$A {END}", special_tokens=[(END, words[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side=padding_side,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )
