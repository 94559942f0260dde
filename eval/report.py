"""One self-contained HTML page of benchmarks and comparisons: tables, curves, costs, images."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tts_vision.errors import ConfigError, StorageError
from tts_vision.eval.statistics import Arm
from tts_vision.eval.tables import cost_rows, figure_rows, written
from tts_vision.eval.thumbnails import thumbnail
from tts_vision.files import best_of, read_file, replace_file
from tts_vision.intervals import Figure
from tts_vision.runs.task import path_in

EVALUATION, COMPARISON = "evaluation.json", "comparison.json"


def write_report(folders: Sequence[Path], page: Path, *, most: int = 60) -> Path:
    """Writes the page.

    Args:
        folders: Output folders of evaluations and comparisons.
        page: The file to write.
        most: Most prompts of a folder that are shown with their images; those with a fault come first.

    Returns:
        The page.

    Raises:
        ConfigError: If a folder holds neither.
        StorageError: If the page cannot be written.
    """
    sections = [_section(folder, most) for folder in folders]
    title = "tts-vision report"
    style = files("tts_vision.eval").joinpath("report.css").read_text(encoding="utf-8")
    text = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{style}</style></head><body><main><h1>{title}</h1>",
            *sections,
            "</main></body></html>\n",
        ]
    )
    replace_file(page, lambda part: part.write_text(text, encoding="utf-8"), "The report")
    return page


def _section(folder: Path, most: int) -> str:
    for name, write in ((EVALUATION, _evaluation), (COMPARISON, _comparison)):
        if (folder / name).is_file():
            try:
                data = json.loads(read_file(folder / name))
                return write(data, folder, most)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"A report needs the {name} of a finished run but that of {str(folder)!r} cannot be read "
                    f"({type(error).__name__}: {error}); run its command again."
                ) from error
    raise ConfigError(
        f"A report is made of output folders of 'eval' and 'compare' but {str(folder)!r} holds neither "
        f"{EVALUATION} nor {COMPARISON}; check the folder, or let the run finish."
    )


def _evaluation(data: Mapping[str, Any], folder: Path, most: int) -> str:
    settings, arms, rows = data["settings"], [Arm.load(each) for each in data["arms"]], data["rows"]
    names = [arm.name for arm in arms]
    facts = {k: v for k, v in settings.items() if v not in (None, "", "1/1") and k != "self_test"}
    parts = [
        f"<section><h2>{_text(settings['benchmark'])}</h2>",
        f"<p class=facts>{_facts(facts)}</p>",
        _command(data["command"]),
        _list("Read this first", data["notes"]),
        _list(f"Missing or not judged ({len(data['complaints'])})", data["complaints"][:200]),
        _table("figure", names, figure_rows(arms)),
        _table("cost of a search", names, cost_rows(arms, phases=False)),
        _split(arms),
        _plots(arms, data["metric"]),
        _faults(rows, names),
        _images(rows, names, folder, most),
        f"<p class=facts>{_facts(data['versions'])}</p>" + (_note(settings.get("self_test"), "Self-test")),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _comparison(data: Mapping[str, Any], folder: Path, most: int) -> str:
    rows, cells = data["rows"], data["cells"]
    several = len({row["verifier"] for row in rows}) > 1
    names = [_arm(row, several) for row in rows]
    judge = data["evaluator"]
    lines = [["score by the guide", *(_interval(r, "score") for r in rows)]]
    lines += [["gain over plain", *(_number(r["gain"], "+.4f") for r in rows)]]
    if judge:
        lines += [[str(judge), *(_interval(r, "evaluation") for r in rows)]]
    costs = [
        ["searches", *(str(r["searches"]) for r in rows)],
        ["nfe", *(_number(r["nfe"], ".0f") for r in rows)],
        ["seconds", *(_number(r["seconds"], ".2f") for r in rows)],
        ["topped up, %", *(_number(100 * r["topped_up"], ".0f") for r in rows)],
    ]
    facts = {"budget": data["budget"], "evaluator": judge, "prompts": len({c["prompt"] for c in cells})}
    shown = [
        {
            "arm": _arm(cell, several),
            "item": cell["prompt"],
            "prompt": cell["prompt"],
            "index": cell["seed"],
            "correct": None,
            "reason": None,
            "score": cell["score"],
            "file": f"{cell['folder']}/{best.name}" if (best := best_of(folder / cell["folder"])) else "",
        }
        for cell in cells
    ]
    parts = [
        f"<section><h2>comparison: {_text(folder.name)}</h2>",
        f"<p class=facts>{_facts({k: v for k, v in facts.items() if v})}</p>",
        _table("figure", names, lines),
        _table("cost of a search", names, costs),
        _embedded(folder / "comparison.png", "Scores against compute"),
        _images(shown, names, folder, most),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _arm(row: Mapping[str, Any], several: bool) -> str:
    return f"{row['algorithm']} / {row['verifier']}" if several else str(row["algorithm"])


def _split(arms: Sequence[Arm]) -> str:
    """Bars of the seconds of a search by phase."""
    totals = [(arm.name, arm.phases, arm.seconds) for arm in arms if arm.phases]
    if not totals:
        return ""
    longest = max(max(seconds, sum(phases.values())) for _, phases, seconds in totals) or 1.0
    kinds = list(dict.fromkeys(kind for _, phases, _ in totals for kind in phases))
    lines = ["<h3>Seconds of a search by phase</h3><div class=bars>"]
    for name, phases, seconds in totals:
        parts = [(kind, phases.get(kind, 0.0)) for kind in kinds]
        parts.append(("rest", max(0.0, seconds - sum(value for _, value in parts))))
        pieces = "".join(
            f'<span class="p{kinds.index(kind) if kind in kinds else "rest"}" '
            f'style="width:{100 * value / longest:.2f}%" title="{_text(kind)} {value:.3f} s"></span>'
            for kind, value in parts
            if value > 0
        )
        lines.append(f"<div><b>{_text(name)}</b><div class=bar>{pieces}</div></div>")
    keys = "".join(f'<li><i class="p{i}"></i>{_text(kind)}</li>' for i, kind in enumerate(kinds))
    return "\n".join([*lines, f'</div><ul class=legend>{keys}<li><i class="prest"></i>rest</li></ul>'])


def _plots(arms: Sequence[Arm], metric: str) -> str:
    """Quality against seconds and compute, and the rejected share against compute."""
    seconds = {arm.name: arm.by_seconds for arm in arms if arm.by_seconds}
    compute = {arm.name: arm.by_compute for arm in arms if arm.by_compute}
    rejected = {name: (c.spent, c.rejected) for name, c in compute.items() if c.rejected}
    panels = [
        ("seconds of a search", metric, {name: (c.spent, c.quality) for name, c in seconds.items()}),
        ("compute of a search", metric, {name: (c.spent, c.quality) for name, c in compute.items()}),
        ("compute of a search", "winners rejected by the judge", rejected),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    found = []
    for xlabel, ylabel, lines in panels:
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tts-vision"}):
            figure = Drawing(figsize=(4.6, 3.1), layout="constrained")
            axis = figure.subplots()
            for name, (spent, values) in lines.items():
                axis.plot(spent, values, label=name, drawstyle="steps-post")
            axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
            axis.legend(fontsize=8)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        svg = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>", "", buffer.getvalue())
        found.append(f"<figure>{svg}</figure>")
    return f"<h3>Quality against spending</h3><div class=plots>{''.join(found)}</div>"


def _faults(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
    """How many winners fail which kind of demand."""
    counts = {arm: Counter[str]() for arm in arms}
    for row in rows:
        counts[row["arm"]].update(kind for kind, number in row["faults"].items() if number)
    kinds = sorted({kind for count in counts.values() for kind in count})
    if not kinds:
        return ""
    lines = [[kind, *(str(counts[arm][kind]) for arm in arms)] for kind in kinds]
    return _table("winners that fail a demand of kind", arms, lines)


def _images(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], folder: Path, most: int) -> str:
    """The winners of each prompt and sample side by side."""
    groups: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["item"], row["index"]), {})[row["arm"]] = row
    order = sorted(groups, key=lambda key: all(row["correct"] is not False for row in groups[key].values()))
    prompts: dict[str, None] = {}
    lines = []
    for key in order:
        if key[0] not in prompts and len(prompts) >= most:
            continue
        prompts[key[0]] = None
        cells = "".join(_cell(arm, groups[key].get(arm), folder) for arm in arms)
        prompt = next(iter(groups[key].values()))["prompt"]
        lines.append(
            f"<div class=row><p>{_text(prompt)} <small>#{key[1]}</small></p><div>{cells}</div></div>"
        )
    if not lines:
        return ""
    every = len({item for item, _ in groups})
    head = f"Images ({len(prompts)} of {every} prompts{', faults first' if len(prompts) < every else ''})"
    return (
        f"<details open><summary><h3>{head}</h3></summary><div class=gallery>{''.join(lines)}</div></details>"
    )


def _cell(arm: str, row: Mapping[str, Any] | None, folder: Path) -> str:
    if row is None:
        return f"<figure><div class=none>none</div><figcaption>{_text(arm)}</figcaption></figure>"
    mark = {True: "right", False: "wrong", None: ""}[row["correct"]]
    score = "" if row.get("score") is None else f" {row['score']:.3f}"
    reason = f"<small>{_text(row['reason'])}</small>" if row["reason"] else ""
    label = f"{arm}: {row['prompt']}"
    image = _thumbnail(folder, row["file"], label) if row["file"] else "<div class=none>none</div>"
    word = f" <b>{mark}</b>" if mark else ""
    return (
        f'<figure class="{mark}">{image}<figcaption>{_text(arm)}{score}{word}{reason}</figcaption></figure>'
    )


def _thumbnail(folder: Path, file: str, label: str) -> str:
    try:
        data, width, height = thumbnail(path_in(folder, file))
    except (OSError, ValueError, StorageError, ConfigError):
        return "<div class=none>cannot be read</div>"
    return (
        f'<img src="data:image/webp;base64,{_base64(data)}" alt="{_text(label)}" '
        f'width="{width}" height="{height}" loading="lazy">'
    )


def _embedded(path: Path, label: str) -> str:
    if not path.is_file():
        return ""
    data = _base64(read_file(path))
    return f'<figure class=plot><img src="data:image/png;base64,{data}" alt="{_text(label)}"></figure>'


def _table(corner: str, heads: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in (corner, *heads))
    body = "".join(
        f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h3>{_text(title)}</h3><ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _note(text: Any, title: str) -> str:
    return f"<p class=facts>{title}: {_text(text)}</p>" if text else ""


def _command(words: Sequence[str]) -> str:
    import shlex

    return f"<pre>{_text(shlex.join(map(str, words)))}</pre>" if words else ""


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{_text(name)} <b>{_text(value)}</b>" for name, value in facts.items())


def _interval(row: Mapping[str, Any], name: str) -> str:
    ends = [row[key] for key in (name, f"{name}_low", f"{name}_high")]
    return written(Figure(*(math.nan if end is None else end for end in ends)))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(value: Any) -> str:
    return html.escape(str(value))
