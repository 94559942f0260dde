"""Images of a search: its samples, its progress, its family tree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from tts_vision.candidates import Candidate
from tts_vision.media import still
from tts_vision.reflections import Reflection, reflections
from tts_vision.trace import Ancestor, Event, ancestry, answers
from tts_vision.types import Video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tts_vision.types import Region

_SHEET_WIDTH, _MOST_IMAGES, _MOST_CLIPS = 1280, 400, 100
_STRIP = 6  # frames of a clip that are shown
BEST, _LINE, FAINT = "#d1495b", "#30638e", "#b8bfc6"


class Point(NamedTuple):
    """One finished and scored sample, the best one by then, and what had been spent."""

    compute: float
    seconds: float
    uid: int
    value: float
    best_uid: int
    best: float


def best_so_far(events: Sequence[Event], final: Mapping[int, float] | None = None) -> list[Point]:
    """How the best score grew; one point per finished and scored sample.

    Samples that were scored together share evenly what was spent since the scoring before.

    Args:
        events: The trace.
        final: Scores as they stand at the end, by uid, where they differ from those in the trace.
    """
    points: list[Point] = []
    best_uid, best, compute, seconds = -1, -math.inf, 0.0, 0.0
    for event in answers(events, "score"):
        if event.preview:
            continue
        n = len(event.values)
        for i, (uid, recorded) in enumerate(zip(event.uids, event.values), start=1):
            value = recorded if final is None else final.get(uid, recorded)
            if math.isnan(value):
                continue
            if value > best:
                best_uid, best = uid, value
            spent = event.spent
            by_now = compute + i / n * (spent.compute - compute)
            points.append(
                Point(by_now, seconds + i / n * (spent.elapsed - seconds), uid, value, best_uid, best)
            )
        compute, seconds = event.spent.compute, event.spent.elapsed
    return points


def known_at(events: Sequence[Event]) -> dict[int, tuple[float, float]]:
    """The compute and the seconds that were spent when each sample's score was known, by uid.

    Samples that are scored together are known together, when all of them are paid for.
    """
    return {
        uid: (event.spent.compute, event.spent.elapsed)
        for event in answers(events, "score")
        if not event.preview
        for uid in event.uids
    }


def scaling(
    curve: Sequence[Point],
    *,
    known: Mapping[int, tuple[float, float]] | None = None,
    verifier: str = "",
    held_out: Mapping[int, float] | None = None,
    holdout: str | None = None,
    title: str = "",
    unit: str = "network evaluations (nfe)",
) -> Figure:
    """The best score so far, against what the generator computed and against seconds.

    Args:
        curve: From `best_so_far`.
        known: From `known_at`. With it the curve begins at the cost of the first batch and has a dot for each
            batch; inside batches, where samples share the cost evenly, it is dotted.
        verifier: What the verifier is called.
        held_out: The holdout's scores by uid, drawn on an axis of their own for the best sample so far.
        holdout: What the holdout is called.
        title: Of the figure.
        unit: Of the compute.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shared = [[p.compute for p in curve], [p.seconds for p in curve]]
    for index, (axis, spent) in enumerate(zip(axes, shared)):
        at = spent if known is None else [known[p.uid][index] for p in curve]
        last = [i for i in range(len(at)) if i + 1 == len(at) or at[i + 1] > at[i]]  # of each batch
        batches, best = [at[i] for i in last], [curve[i].best for i in last]
        draw_scaling(axis, batches, best)
        if known is not None:
            axis.plot(batches, best, marker="o", markersize=3.5, linestyle="none", color=_LINE)
            axis.step(spent, [p.best for p in curve], where="post", color=_LINE, linestyle=":", linewidth=1)
            axis.set_xlim(left=0)
        if held_out:
            beside = axis.twinx()
            values = [held_out.get(p.best_uid, math.nan) for p in curve]
            beside.step(at, values, where="post", color=BEST, linestyle="--", linewidth=1.4)
            beside.tick_params(axis="y", colors=BEST)
            if axis is axes[1]:
                beside.set_ylabel(f"holdout: {shortened(holdout or '', 40)}", color=BEST)
    by = f" by {shortened(verifier, 40)}" if verifier else ""
    axes[0].set(xlabel=unit, ylabel=f"best score so far{by}")
    axes[1].set(xlabel="seconds")
    figure.suptitle(shortened(title, 90), fontsize=11)
    return figure


def draw_scaling(axes: Axes, spent: Sequence[float], best: Sequence[float], label: str | None = None) -> None:
    """Draws one curve of best scores."""
    axes.step(spent, best, where="post", label=label, linewidth=1.8)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def contact_sheet(
    candidates: Sequence[Candidate], *, title: str = "", plain: int | None = None
) -> Image.Image:
    """The samples in the given order with their scores under them; invalid ones are crossed out.

    At most 400 images; of clips at most 100, each as a strip of six frames from the first to the last.

    Args:
        candidates: The samples.
        title: Of the sheet.
        plain: The particle of the plain sample, which is marked.
    """
    first = next((c.load() for c in candidates if _has_pixels(c)), None)
    shown = candidates[: _MOST_CLIPS if isinstance(first, Video) else _MOST_IMAGES]
    if isinstance(first, Video):
        side = 192 if len(shown) <= 4 else 96
        width, height = _STRIP * (side + 2) - 2, fit(still(first), side).height
    else:
        side = width = height = 192 if len(shown) <= 36 else 112
    columns = max(1, min(len(shown), _SHEET_WIDTH // (width + 8)))
    rows = math.ceil(len(shown) / columns)
    font, head = ImageFont.load_default(12), ImageFont.load_default(15)
    omitted = f"  (best {len(shown)} of {len(candidates)})" if len(shown) < len(candidates) else ""
    text = shortened(title, 100) + omitted
    whole = max(columns * (width + 8) + 8, math.ceil(head.getlength(text)) + 16)
    sheet = Image.new("RGB", (whole, rows * (height + 28) + 36), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), text, fill="black", font=head)
    for number, candidate in enumerate(shown):
        row, column = divmod(number, columns)
        x, y = 8 + column * (width + 8), 34 + row * (height + 28)
        is_plain, is_invalid = candidate.uid == plain, candidate.score.is_invalid
        image = _cell(candidate, side, (width, height))
        left, top = x + (width - image.width) // 2, y + (height - image.height) // 2
        right, bottom = left + image.width - 1, top + image.height - 1
        sheet.paste(image, (left, top))
        if is_invalid:
            draw.line((left, top, right, bottom), fill=FAINT, width=3)
            draw.line((left, bottom, right, top), fill=FAINT, width=3)
        outline = (_LINE, 3) if is_plain else (FAINT, 1)
        draw.rectangle((left, top, right, bottom), outline=outline[0], width=outline[1])
        color = BEST if number == 0 else _LINE if is_plain else "black"
        draw.text((x, y + height + 3), _label(candidate, is_plain=is_plain), fill=color, font=font)
    return sheet


def strip(clip: Video, side: int, height: int | None = None, frames: int = _STRIP) -> Image.Image:
    """Frames of a clip side by side, evenly from the first to the last; all of a shorter one.

    Args:
        clip: The clip.
        side: Most pixels of a frame's sides.
        height: Most pixels of its height, if fewer.
        frames: How many.
    """
    last = len(clip.frames) - 1
    chosen = sorted({round(i * last / max(1, frames - 1)) for i in range(frames)})
    images = [fit(Image.fromarray(clip.frames[i].numpy()), side, height) for i in chosen]
    made = Image.new("RGB", (sum(image.width + 2 for image in images) - 2, images[0].height), "white")
    for number, image in enumerate(images):
        made.paste(image, (number * (image.width + 2), 0))
    return made


def _cell(candidate: Candidate, side: int, size: tuple[int, int]) -> Image.Image:
    """A sample as a sheet shows it, in a cell of ``(width, height)``."""
    media = candidate.load() if _has_pixels(candidate) else None
    if media is None:
        return Image.new("RGB", size, "white")
    return strip(media, side, size[1]) if isinstance(media, Video) else fit(media, side, size[1])


def _has_pixels(candidate: Candidate) -> bool:
    return candidate.media is not None or candidate.path is not None


def reflection_sheet(
    told: Sequence[Reflection], candidates: Sequence[Candidate], *, title: str = ""
) -> Image.Image:
    """The judged samples one below the other: the image, why it was rejected, and what was made of it.

    Parts of an image that the reason is about are framed. Of each correction the best samples are shown.

    Args:
        told: The reflections.
        candidates: The finished samples, best first.
        title: Of the sheet.
    """
    by_uid = {candidate.uid: candidate for candidate in candidates}
    order = [candidate.uid for candidate in candidates]
    side, words, most = 160, 250, 5
    font, head = ImageFont.load_default(12), ImageFont.load_default(15)
    shown = [each for each in told if each.uid in by_uid]
    left = 8 + side + 12 + words
    sheet = Image.new("RGB", (left + most * (side + 8), 36 + max(1, len(shown)) * (side + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), shortened(title, 100), fill="black", font=head)
    for row, each in enumerate(shown):
        y = 34 + row * (side + 28)
        _thumbnail(sheet, by_uid[each.uid], (8, y), side, each.regions)
        draw.text((8, y + side + 3), _label(by_uid[each.uid], is_plain=False), fill="black", font=font)
        lines = _wrapped("holds" if each.holds else each.reason or "rejected, without a reason", font, words)
        lines = lines[:8] + [f"-> {c.corrector}: {len(c.uids)}" for c in each.corrections[:2]]
        color = _LINE if each.holds else BEST
        draw.multiline_text((8 + side + 10, y + 2), "\n".join(lines), fill=color, font=font)
        made = {uid for c in each.corrections for uid in c.uids}
        for column, uid in enumerate([uid for uid in order if uid in made][:most]):
            x = left + column * (side + 8)
            _thumbnail(sheet, by_uid[uid], (x, y), side)
            draw.text((x, y + side + 3), _label(by_uid[uid], is_plain=False), fill="black", font=font)
    return sheet


def _thumbnail(
    sheet: Image.Image, candidate: Candidate, at: tuple[int, int], side: int, regions: Sequence[Region] = ()
) -> None:
    """Draws a sample into a square, and frames around some of its parts."""
    has_pixels = _has_pixels(candidate)
    image = fit(still(candidate.load()), side) if has_pixels else Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in regions:
        box = (left * image.width, top * image.height, right * image.width - 1, bottom * image.height - 1)
        if box[0] <= box[2] and box[1] <= box[3]:
            draw.rectangle(box, outline=BEST)
    sheet.paste(image, (at[0] + (side - image.width) // 2, at[1] + (side - image.height) // 2))


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words of a text in lines of at most so many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _label(candidate: Candidate, *, is_plain: bool) -> str:
    value = candidate.score.value
    score = f"{value:.4f}"
    if math.isnan(value):
        score = "invalid" if candidate.score.is_invalid else "unscored"
    return f"#{candidate.uid}{'  plain' if is_plain else ''}  {score}"


def fit(image: Image.Image, side: int, height: int | None = None) -> Image.Image:
    """The image as large as fits a square, or a lower box; small ones by whole factors, to show pixels."""
    image = image.convert("RGB")
    factor = min(side / image.width, (side if height is None else height) / image.height)
    method = Image.Resampling.LANCZOS
    if factor >= 1:
        factor, method = max(1, math.floor(factor)), Image.Resampling.NEAREST
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, method)


def lineage_svg(events: Sequence[Event], best: int | None, final: Mapping[int, float] | None = None) -> str:
    """The family tree of a search: one line per particle from the step it was born at to where it ended.

    Finished samples that were rejected say why, and dotted lines lead to those that were begun from them.

    Args:
        events: The trace.
        best: The winner, whose ancestors are emphasized.
        final: Scores as they stand at the end, by uid, where they differ from those in the trace.
    """
    born = ancestry(events)
    if not born:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>\n'
    ends = _last_steps(events, born)
    scores = {**_last_scores(events), **(final or {})}
    order = _family_order(born)
    height = min(22.0, max(4.0, 1400 / len(order)))
    labels = height >= 9
    num_steps = max([1, *ends.values()])
    left, top, dx = 60.0, 48.0, 640 / num_steps
    y = {uid: top + height * (row + 0.5) for row, uid in enumerate(order)}
    x: dict[int, float] = {}
    for uid in order:
        ancestor = born[uid]
        x[uid] = left + ancestor.step * dx
        if ancestor.parent is not None and ancestor.step == ancestor.parent_step:
            # children made at one step would hide their parents without an indent
            x[uid] = max(x[uid], x[ancestor.parent] + 8)
    line = _line_of(born, best)
    told = _reasons(events)
    width, bottom = max(left + num_steps * dx, *x.values()) + 150, top + height * len(order)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{bottom + 16:.0f}" '
        f'viewBox="0 0 {width:.0f} {bottom + 16:.0f}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width:.0f}" height="{bottom + 16:.0f}" fill="white"/>',
        '<text x="8" y="16">particles by step; red: the winner and its ancestors; '
        "dashed: made by a move; grey: not scored</text>",
    ]
    for step in sorted({round(i * num_steps / 8) for i in range(9)}):
        at = left + step * dx
        parts.append(f'<line x1="{at:.1f}" y1="38" x2="{at:.1f}" y2="{bottom:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{at:.1f}" y="34" text-anchor="middle" fill="#777">{step}</text>')
    # the winner's line last, on top
    for uid in sorted(order, key=lambda u: u in line):
        remarks = told.get(uid, [])
        parts += _particle(
            born[uid], ends[uid], scores.get(uid), uid in line, x, y, left, dx, labels, remarks
        )
    for rejected, child in _corrected(events, born):
        start, end = left + ends[rejected] * dx, x[child]
        parts.append(
            f'<path d="M{start:.1f} {y[rejected]:.1f} L{end:.1f} {y[child]:.1f}" stroke="{FAINT}" '
            'stroke-dasharray="1 3" fill="none"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _particle(
    ancestor: Ancestor,
    end: int,
    score: float | None,
    is_line: bool,
    x: dict[int, float],
    y: dict[int, float],
    left: float,
    dx: float,
    labels: bool,
    remarks: Sequence[str],
) -> list[str]:
    uid, parent = ancestor.uid, ancestor.parent
    color = BEST if is_line else (FAINT if score is None or math.isnan(score) else _LINE)
    stroke = f'stroke="{color}" stroke-width="{2.5 if is_line else 1.2}" fill="none"'
    verdict = "" if score is None else ("unscored" if math.isnan(score) else f"{score:.4g}")
    facts = [f"#{uid}", ancestor.origin, f"step {ancestor.step}"]
    facts += [f"from #{parent}"] if parent is not None else []
    facts += [f"seed {ancestor.seed}"] if ancestor.seed is not None else []
    facts += [str(ancestor.move)] if ancestor.move else []
    facts += [str(ancestor.condition)] if ancestor.condition else []
    facts += [f"score {verdict}"] if verdict else []
    facts += remarks
    stop = max(left + end * dx, x[uid] + 4)
    parts = [f"<g><title>{escape(', '.join(facts))}</title>"]
    if parent is not None:
        start = max(left + (ancestor.parent_step or 0) * dx, x[parent])
        bend = (start + x[uid]) / 2
        dash = "" if ancestor.origin == "select" else ' stroke-dasharray="3 2"'
        parts.append(
            f'<path d="M{start:.1f} {y[parent]:.1f} C{bend:.1f} {y[parent]:.1f} {bend:.1f} {y[uid]:.1f} '
            f'{x[uid]:.1f} {y[uid]:.1f}" {stroke}{dash}/>'
        )
    parts.append(f'<path d="M{x[uid]:.1f} {y[uid]:.1f} H{stop:.1f}" {stroke}/>')
    if labels or is_line:
        text = f"#{uid} {verdict}".strip()
        parts.append(f'<text x="{stop + 5:.1f}" y="{y[uid] + 4:.1f}" fill="{color}">{text}</text>')
    parts.append("</g>")
    return parts


def _reasons(events: Sequence[Event]) -> dict[int, list[str]]:
    """What reflections say of particles, and of which rejected one they were begun."""
    told: dict[int, list[str]] = {}
    for each in reflections(events):
        said = "holds" if each.holds else f"rejected: {each.reason or 'without a reason'}"
        told.setdefault(each.uid, []).append(said)
        for correction in each.corrections:
            for uid in correction.uids:
                told.setdefault(uid, []).append(f"corrects #{each.uid} by {correction.corrector}")
    return told


def _corrected(events: Sequence[Event], born: Mapping[int, Ancestor]) -> list[tuple[int, int]]:
    """Rejected particles and those that were begun from them without being their children."""
    pairs = [(each.uid, uid) for each in reflections(events) for c in each.corrections for uid in c.uids]
    return [(a, b) for a, b in pairs if a in born and b in born and born[b].parent is None]


def _last_steps(events: Sequence[Event], born: dict[int, Ancestor]) -> dict[int, int]:
    """The furthest step that each particle reached."""
    ends = {uid: ancestor.step for uid, ancestor in born.items()}
    for event in events:
        if event.kind == "computed" and event.what != "decode":
            for uid in event.uids:
                ends[uid] = max(ends[uid], event.step)
    return ends


def _last_scores(events: Sequence[Event]) -> dict[int, float]:
    """The score of each particle: of its finished sample, or else of its last preview."""
    previews: dict[int, float] = {}
    finals: dict[int, float] = {}
    for event in answers(events, "score"):
        (previews if event.preview else finals).update(zip(event.uids, event.values))
    return {**previews, **finals}


def _family_order(born: dict[int, Ancestor]) -> list[int]:
    """All particles, each followed by its descendants."""
    children: dict[int | None, list[int]] = {}
    for uid, ancestor in born.items():
        children.setdefault(ancestor.parent, []).append(uid)
    order: list[int] = []
    stack = sorted(children.get(None, []), reverse=True)
    while stack:
        uid = stack.pop()
        order.append(uid)
        stack += sorted(children.get(uid, []), reverse=True)
    return order


def _line_of(born: dict[int, Ancestor], uid: int | None) -> set[int]:
    """A particle and its ancestors."""
    line: set[int] = set()
    while uid is not None:
        line.add(uid)
        uid = born[uid].parent
    return line


def shortened(text: str, length: int) -> str:
    """A text in one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
