"""Folders of clips as VBench names them: ``{prompt}-{index}.mp4``, all in one folder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from PIL import Image

from tts_vision.eval.evaluator import Found, Item, Sample
from tts_vision.eval.vbench.prompts import CLIPS, file_stem

LOSSLESS = ".mkv"
_ORDER = (".mp4", ".gif", LOSSLESS)
_SHOWN = 5
"""Prompts or files that a complaint names."""


def judged_file(path: Path) -> Path:
    """The file whose frames are judged: the lossless one of the same name beside it, if there is one."""
    lossless = path.with_suffix(LOSSLESS)
    if path.suffix.lower() == LOSSLESS or not lossless.is_file() or _leads_out(lossless, path.parent):
        return path
    return lossless


def fault_of(path: Path) -> str | None:
    """Why the first frame of a clip cannot be read; None if it can, or if PyAV is missing."""
    try:
        if path.suffix.lower() == ".gif":
            with Image.open(path) as image:
                image.load()
            return None
        import av
    except ImportError:
        return None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return str(error)
    try:
        with av.open(str(path)) as file:
            next(file.decode(video=0))
    except StopIteration:
        return "it has no frames"
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        return str(error)
    return None


def read_folder(
    folder: Path, items: Sequence[Item], others: Collection[str], wanted: Callable[[Item], int | None]
) -> Found:
    """The clips of a folder, and a complaint about each that is missing, surplus or cannot be read.

    Args:
        folder: Made by anybody; links that lead out of it are not followed.
        items: The prompts that clips are looked for.
        others: Stems of further prompts, whose clips are no surplus.
        wanted: How many clips an item should have; None where any number will do.
    """
    stems = {file_stem(item.prompt.text): item for item in items}
    clips: dict[tuple[str, int], dict[str, Path]] = {}
    surplus, complaints = [], []
    for file in sorted(folder.iterdir()):
        suffix = file.suffix.lower()
        if suffix not in CLIPS or not file.is_file():
            continue
        stem, index = _named(unicodedata.normalize("NFC", file.stem), stems)
        if _leads_out(file, folder):
            complaints.append(f"{file.name}: is a link that leads out of the folder, so it is not read")
        elif stem in stems:
            clips.setdefault((stem, index), {})[suffix] = file
        elif stem not in others:
            surplus.append(file.name)
    samples: dict[str, list[Sample]] = {}
    for (stem, index), files in sorted(clips.items(), key=lambda each: each[0]):
        path = files[min(files, key=_rank)]
        item, count = stems[stem], wanted(stems[stem])
        fault = fault_of(path)
        if count is not None and index >= count:
            complaints.append(f"{path.name}: is beyond the {count} samples that VBench takes of a prompt")
        elif fault is not None:
            complaints.append(f"{path.name}: cannot be read: {fault}")
        else:
            samples.setdefault(item.id, []).append(Sample(item, index, path))
    found: dict[str, set[int]] = {}
    for stem, index in clips:
        found.setdefault(stems[stem].id, set()).add(index)
    for item in items:
        missing = [n for n in range(wanted(item) or 0) if n not in found.get(item.id, range(n + 1))]
        if missing:
            names = ", ".join(f"-{n}" for n in missing)
            complaints.append(f"{item.id}: no {names} of {item.prompt.text!r}")
    absent = [item.prompt.text for item in items if item.id not in found]
    complaints += [*_absent(absent, len(items)), *_mixed(clips.values()), *_surplus(surplus)]
    ordered = [each for item in items for each in sorted(samples.get(item.id, []), key=lambda s: s.index)]
    return Found(ordered, complaints)


def _named(stem: str, stems: Collection[str]) -> tuple[str, int]:
    """The prompt and the index that a clip is named by; a name without an index is its first."""
    match = re.fullmatch(r"(.*)-(\d+)", stem, re.DOTALL)
    if match is None or (stem in stems and match[1] not in stems):
        return stem, 0
    return match[1], int(match[2])


def _mixed(clips: Collection[dict[str, Path]]) -> list[str]:
    """A complaint if no suffix is shared by all clips."""
    counts = Counter(suffix for files in clips for suffix in files)
    if not clips or max(counts.values()) == len(clips):
        return []
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return [f"clips have mixed suffixes ({listed}), and the official package reads only one of them"]


def _absent(prompts: Sequence[str], total: int) -> list[str]:
    return [f"{len(prompts)} of {total} prompts have no clip: {_first(prompts)}"] if prompts else []


def _surplus(names: Sequence[str]) -> list[str]:
    return [f"clips of no prompt: {_first(names)} ({len(names)} in all)"] if names else []


def _first(texts: Sequence[str]) -> str:
    return ", ".join([*(repr(text) for text in texts[:_SHOWN]), *(["..."] if len(texts) > _SHOWN else [])])


def _rank(suffix: str) -> tuple[int, str]:
    return (_ORDER.index(suffix) if suffix in _ORDER else len(_ORDER), suffix)


def _leads_out(file: Path, folder: Path) -> bool:
    return file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())
