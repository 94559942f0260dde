"""Draft, pick, finish: many cheap previews first, and only the picked ones are finished.

A folder of drafts is that of a search by the algorithm ``draft`` that waits for a person's answer. Its states
are kept, so that each pick goes on from exactly where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.errors import ConfigError
from tts_vision.files import POPULATION, TRACE, inside, is_file, make_inside, replace_file
from tts_vision.folders import check_unchanged, find_began, read_config
from tts_vision.ledger import Budget
from tts_vision.runner import Observer, run, search
from tts_vision.steering import picking
from tts_vision.trace import Event, answers, read_trace
from tts_vision.trust import trusting
from tts_vision.types import Invalid, Prompt

if TYPE_CHECKING:
    from tts_vision.config import ModelOptions, RunConfig, SamplerOptions
    from tts_vision.context import SearchContext
    from tts_vision.results import Result

ALGORITHM = "draft"
SHEET = "drafts.png"
"""The contact sheet of all drafts, by number."""


def draft(
    pipe_or_id: Any,
    prompt: str | Prompt,
    n: int = 64,
    *,
    steps_done: int | None = None,
    verifier: Any = None,
    budget: str | Budget | None = None,
    seed: int = 0,
    output: Path | str,
    pipeline_kwargs: dict[str, Any] | None = None,
    sampler_options: SamplerOptions | None = None,
    model_options: ModelOptions | None = None,
    resume: bool = False,
    max_batch: int | None = None,
    progress: Observer | None = None,
) -> Result:
    """Begins many samples of a prompt, and keeps them as drafts that `finish` can finish.

    The folder gets a contact sheet, ``drafts.png``, on which each draft has its number, and each preview as
    ``population/draft-00003.png``. Numbers are those of the particles: draft 3 becomes the sample that
    ``best_of_n`` with the same seed makes of particle 3.

    Args:
        pipe_or_id: As in `tts_vision.search`.
        prompt: The prompt.
        n: Drafts.
        steps_done: Steps of each draft; by default a quarter of the trajectory.
        verifier: Scores the previews, and the finished samples; as in `tts_vision.search`.
        budget: For the drafts and all that will be finished; by default enough to finish every draft.
        seed: Root seed.
        output: A new folder.
        pipeline_kwargs: As in `tts_vision.search`.
        sampler_options: As in `tts_vision.search`.
        model_options: As in `tts_vision.search`.
        resume: Whether to go on if `output` holds these same drafts.
        max_batch: As in `tts_vision.search`.
        progress: Called with the context and each event as it happens.

    Returns:
        A stopped result; its best is the best preview.

    Raises:
        TTSVisionError: If something cannot be used as given.
    """
    root = Path(output)
    result = search(
        pipe_or_id,
        prompt,
        algorithm=ALGORITHM,
        algorithm_params={"n": n, "steps_done": steps_done},
        verifier=verifier,
        budget=budget or f"{n}x",
        seed=seed,
        output=root,
        pipeline_kwargs=pipeline_kwargs,
        sampler_options=sampler_options,
        model_options=model_options,
        resume=resume,
        max_batch=max_batch,
        progress=keeping_previews(root, progress),
    )
    write_sheet(root)
    return result


def begin(config: RunConfig, *, output: Path | str, progress: Observer | None = None) -> Result:
    """`draft`, for a search that a configuration describes.

    Args:
        config: A search by the algorithm ``draft``.
        output: A new folder.
        progress: Called with the context and each event as it happens.

    Returns:
        As `draft`.
    """
    root = Path(output)
    result = run(config, output=root, progress=keeping_previews(root, progress))
    write_sheet(root)
    return result


def finish(
    folder: Path | str,
    numbers: Sequence[int],
    *,
    pipe: Any = None,
    verifier: Any = None,
    trust: bool = False,
    progress: Observer | None = None,
) -> Result:
    """Finishes drafts, from exactly where they stand: with the same noise and the same state.

    Further ones can be finished later. A draft that is finished already stays as it is.

    Args:
        folder: The output folder of `draft`.
        numbers: The numbers of the drafts to finish.
        pipe: The pipeline, if the drafts were made with a live one.
        verifier: The verifier, if it was a live one.
        trust: Whether to run code and ask endpoints that the folder's configuration names, as in
            `tts_vision.resume`.
        progress: Called with the context and each event as it happens.

    Returns:
        The result so far, with all finished drafts.

    Raises:
        ConfigError: If the folder holds no drafts, or none of these numbers, or asks for trust.
    """
    from tts_vision.resolve import Live

    root = Path(folder)
    check_picks(root, numbers)
    config = read_config(root)
    check_unchanged(root, config, find_began(root))
    with trusting(root, config, trust=trust), picking(numbers):
        live = Live(pipe=pipe, verifier=verifier)
        result = run(config, live, output=root, resume=True, progress=keeping_previews(root, progress))
    write_sheet(root)
    return result


def check_picks(root: Path, numbers: Sequence[int]) -> None:
    """Checks that drafts of these numbers are in a folder.

    Raises:
        ConfigError: If they are not.
    """
    config = read_config(root)
    if config.algorithm != ALGORITHM:
        raise ConfigError(
            f"Drafts are finished in a folder of drafts but {str(root)!r} holds a search by "
            f"{config.algorithm!r}; make drafts with 'tts-vision draft'."
        )
    known = drafts_of(read_trace(root / TRACE))
    wrong = [number for number in numbers if number not in known]
    if wrong or not numbers:
        some = f"{min(known)} to {max(known)}" if known else "none yet ('tts-vision resume' makes them)"
        raise ConfigError(
            f"Drafts are picked by their numbers on the contact sheet, {some}, but got "
            f"{wrong[0] if wrong else 'none'}; name at least one of them."
        )


def drafts_of(events: Sequence[Event]) -> dict[int, float]:
    """The drafts of a search by their numbers, with the scores of their previews."""
    for answer in answers(events, "score"):
        if answer.preview:
            return dict(zip(answer.uids, answer.values))
    return {}


def keeping_previews(root: Path, progress: Observer | None = None) -> Observer:
    """An observer of a search that keeps its drafts as files.

    Args:
        root: The folder of the search.
        progress: Another observer, which is called afterwards.
    """

    def observe(context: SearchContext, event: Event) -> None:
        if event.kind == "computed" and event.what == "decode" and event.preview:
            from tts_vision.media import still

            for uid, sample in context.decoded.items():
                media = sample.media if isinstance(sample, Invalid) else sample
                if media is not None:
                    make_inside(root / POPULATION)
                    save = partial(still(media).save, format="PNG")
                    replace_file(draft_file(root, uid), save, "A draft")
        if progress is not None:
            progress(context, event)

    return observe


def draft_file(root: Path, uid: int) -> Path:
    """The file of a draft's preview."""
    return root / POPULATION / f"draft-{uid:05d}.png"


def write_sheet(root: Path) -> None:
    """Draws the contact sheet of a folder of drafts, best first, each with its number and its score.

    Raises:
        StorageError: If it cannot be written.
    """
    from tts_vision.candidates import Candidate
    from tts_vision.figures import contact_sheet
    from tts_vision.results import ranked
    from tts_vision.types import Score

    config = read_config(root)
    scores = drafts_of(read_trace(root / TRACE))
    shown = [
        Candidate(uid, Score(value=value), 0, preview=True, path=path)
        for uid, value in scores.items()
        if is_file(path := inside(root, f"{POPULATION}/{draft_file(root, uid).name}"))
    ]
    if shown:
        sheet = contact_sheet(ranked(shown), title=config.prompt)
        replace_file(root / SHEET, partial(sheet.save, format="PNG"), "The contact sheet")
