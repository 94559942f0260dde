"""How Show-o lays out a prompt and an image in one sequence (Xie et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tts_vision.errors import ConfigError

SPECIAL = (
    "[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The vocabulary and the sequence.

    Ids are those of the text tokenizer, then the ten of `SPECIAL`, then the codes of images, then the mask. A
    sequence is ``[PAD] ... <|t2i|> bos words eos <|soi|> codes <|eoi|>``, padded on the left up to `<|soi|>`.

    Attributes:
        words: Ids of the text tokenizer.
        codes: Codes ``V`` of images.
        text_length: Ids of a sequence before `<|soi|>`.
        bos: Id before the words.
        eos: Id behind the words.
    """

    words: int
    codes: int
    text_length: int
    bos: int
    eos: int

    @property
    def offset(self) -> int:
        """The id of code 0."""
        return self.words + len(SPECIAL)

    @property
    def mask(self) -> int:
        """The id of a code that is not known: that of code ``V``."""
        return self.offset + self.codes

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.mask + 1

    def special(self, name: str) -> int:
        """The id of one of `SPECIAL`."""
        return self.words + SPECIAL.index(name)

    def prompt(self, tokenizer: Any, text: str) -> list[int]:
        """The ids of a prompt, from `<|t2i|>` to eos.

        Raises:
            ConfigError: If there are more than `text_length`; Show-o's own code cuts such a prompt.
        """
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = [self.special("<|t2i|>")]
        if ids[:1] != [self.bos]:
            begin.append(self.bos)
        found = [*begin, *ids, self.eos]
        if len(found) > self.text_length:
            most = self.text_length - len(begin) - 1
            raise ConfigError(
                f"A prompt must have at most {most} tokens here but has {len(ids)}: {text[:60]!r}...; "
                "shorten it."
            )
        return found

    def prefix(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Prompts ``(n, L)``, padded on the left to the longest; more pads would change nothing."""
        longest = max(map(len, prompts))
        pad = self.special("[PAD]")
        return torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts])

    def image(self, codes: Tensor) -> Tensor:
        """Ids ``(B, S + 2)`` from `<|soi|>` to `<|eoi|>` of codes ``(B, S)``, in which ``V`` is the mask."""
        soi, eoi = (codes.new_full((len(codes), 1), self.special(name)) for name in ("<|soi|>", "<|eoi|>"))
        return torch.cat((soi, codes + self.offset, eoi), 1)

    def attended(self, prefix: Tensor, image_length: int) -> Tensor:
        """Which positions each position attends to, ``(n, L, L)`` bool, for ``L`` with the image.

        Words see the words before them; `<|soi|>`, codes and `<|eoi|>` see all words and the whole image;
        nobody but pads sees pads.

        Args:
            prefix: ``(n, l)`` from `prefix`.
            image_length: Ids from `<|soi|>` to `<|eoi|>`; 0 for the prompt alone.
        """
        length = prefix.shape[1] + image_length
        seen = torch.ones(len(prefix), length, length, dtype=torch.bool, device=prefix.device).tril()
        seen[:, prefix.shape[1] :] = True
        pads = torch.nn.functional.pad(prefix == self.special("[PAD]"), (0, image_length))
        return seen & (pads[:, :, None] | ~pads[:, None, :])


def additive(attended: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of attention to add to its scores: ``(n, 1, ...)``, 0 or the lowest number."""
    mask = torch.zeros(attended.shape, dtype=dtype, device=attended.device)
    return mask.masked_fill(~attended, torch.finfo(dtype).min).unsqueeze(1)
