"""FUDOKI as the judge of its own images: best of n by its understanding branch.

    pipe = load_fudoki("LucasJinWang/FUDOKI")
    tts_vision.search(pipe, prompt, algorithm="best_of_n", verifier=FudokiJudge(pipe), budget="8x")

The paper reports gains of test-time search by a judge and publishes no code of it. The question, and reading
the score from the probability of the answer, are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.fudoki import END, START, TEMPLATE, TEXT_LENGTH, FudokiPipeline
from tts_vision.pipelines.tokens.kinetic import Schedule, euler_step
from tts_vision.plugins import ALONE, Asked, Media, Prompt, Score, Verifier
from tts_vision.rng import row_uniform

QUESTION = 'Does this image show exactly "{prompt}"? Answer yes or no.'
_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_IMAGE = "<image_placeholder>"
_YES, _NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
_GREY = (127, 127, 127)


class FudokiJudge(Verifier):
    """Asks a FUDOKI whether its image shows the prompt; the probability of yes against no, in [0, 1].

    The answer is a discrete flow over the text behind the question, from tokens that are the same for every
    image, always towards the likeliest ones. The score is read from the prediction of its last step at the
    first place of the answer.

    Args:
        pipe: The model, with its embedding of texts.
        steps: Evaluations for one answer.
        question: With ``{prompt}`` in the place of the prompt.

    Raises:
        ConfigError: If there are too few steps, or the question does not mention the prompt.
    """

    name = "fudoki_judge"
    accepts = frozenset({"image"})

    def __init__(self, pipe: FudokiPipeline, *, steps: int = 10, question: str = QUESTION) -> None:
        if steps < 1 or "{prompt}" not in question:
            raise ConfigError(
                "A judge needs at least 1 step and a question with {prompt} but got "
                f"{steps} and {question!r}; leave them out for the defaults."
            )
        self.pipe, self.steps, self.question = pipe, steps, question

    def load(self) -> None:
        self._answers()
        _ = self.pipe.text_metric

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [self._score(image, prompt) for image, prompt in zip(media, prompts)]

    def _score(self, image: Media, prompt: Prompt) -> Score:
        if not isinstance(image, Image.Image):
            return Score.unscored(f"{self.name} judges images only")
        prefix = self._prefix(prompt)
        room = TEXT_LENGTH + self._image_tokens - len(prefix)
        if room < 1:
            return Score.unscored(f"the question is longer than the {TEXT_LENGTH} tokens of the model")
        answer, probability = self._answer(prefix, self._seen(image), room)
        yes, no = (float(probability[ids].sum()) for ids in self._answers())
        if yes + no <= 0:
            return Score.unscored("the model gives neither yes nor no any probability")
        said = self.pipe.tokenizer.decode(answer.tolist(), skip_special_tokens=True).strip()
        return Score(value=yes / (yes + no), parts={"yes": yes, "no": no}, reason=said[:200])

    @property
    def _image_tokens(self) -> int:
        tokens: int = self.pipe.model.config.vision_config.num_image_tokens
        return tokens

    def _prefix(self, prompt: Prompt) -> list[int]:
        """The ids before the answer; -1 where the image is."""
        pipe = self.pipe
        asked = self.question.format(prompt=prompt.text)
        before, after = f"{_SYSTEM}\n\n{TEMPLATE}".format(text=_IMAGE + asked.strip()).split(_IMAGE, 1)
        image = [pipe.special(START), *[-1] * self._image_tokens, pipe.special(END)]
        return [pipe.first, *pipe.ids(before), *image, *pipe.ids(after)]

    @torch.no_grad()
    def _seen(self, image: Image.Image) -> Tensor:
        """An image as the language model takes it, ``(1, S, W)``: whole, on grey, at the model's size."""
        model = self.pipe.model
        size = model.config.vision_config.image_size
        scale = size / max(image.size)
        fitted = image.convert("RGB").resize(
            [max(1, int(side * scale)) for side in image.size], Image.Resampling.BILINEAR
        )
        whole = Image.new("RGB", (size, size), _GREY)
        whole.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
        pixels = torch.from_numpy(np.array(whole)).permute(2, 0, 1)[None].float() / 127.5 - 1
        inner = model.model
        features: Tensor = inner.aligner(inner.vision_model(pixels.to(model.device)).last_hidden_state)
        return features

    @torch.no_grad()
    def _answer(self, prefix: list[int], image: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """The answer ``(room,)``, and the probabilities of its first token in the last step."""
        pipe, metric, schedule = self.pipe, self.pipe.text_metric, Schedule()
        ids = torch.tensor([prefix], device=pipe.model.device)
        before = pipe.embedded(ids.clamp_min(0)).float()
        before[ids == -1] = image.reshape(-1, image.shape[-1]).float()
        where, like = metric.codebook.device, torch.empty(1, room)
        x = (row_uniform(0, "init", [0], 0, like).double() * metric.vocabulary).long()
        for step in range(self.steps):
            hidden = pipe.hidden(torch.cat([before, pipe.embedded(x).float()], 1))
            # a token is predicted where the one before it stands
            logits = pipe.model.lm_head(hidden[:, len(prefix) - 1 : -1]).float()
            x1 = logits.argmax(-1).to(where)
            if step == self.steps - 1:
                break
            uniform = row_uniform(0, "step", [0], step, torch.empty(1, room, 2)).movedim(-1, 0).to(where)
            x = euler_step(metric, x.to(where), x1, step / self.steps, 1 / self.steps, schedule, uniform)
        return x1[0].cpu(), logits[0, 0].softmax(-1).cpu()

    def _answers(self) -> tuple[list[int], list[int]]:
        """The ids of yes and of no, in all spellings that are one token.

        Raises:
            PipelineError: If one has none.
        """
        found = []
        for words in (_YES, _NO):
            spelled = {tuple(self.pipe.ids(word)) for word in words}
            unknown = self.pipe.tokenizer.unk_token_id
            ids = sorted(ids[0] for ids in spelled if len(ids) == 1 and ids[0] != unknown)
            if not ids:
                raise PipelineError(
                    f"The tokenizer of {self.pipe.name} must have {words[0]!r} as a token but has not; give "
                    "the one that is published with the weights."
                )
            found.append(ids)
        return found[0], found[1]


def judge(*, model: str = "LucasJinWang/FUDOKI", steps: int = 10, question: str = QUESTION) -> FudokiJudge:
    """The judge with a model of its own, for the command line.

    Args:
        model: A folder or a repository on the Hugging Face hub.
        steps: Evaluations for one answer.
        question: With ``{prompt}`` in the place of the prompt.
    """
    from tts_vision.pipelines.tokens.fudoki_loading import load_fudoki

    return FudokiJudge(load_fudoki(model), steps=steps, question=question)
