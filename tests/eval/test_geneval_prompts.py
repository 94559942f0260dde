from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from tts_vision.errors import ConfigError, SearchWarning
from tts_vision.eval.geneval import prompts
from tts_vision.eval.geneval.prompts import (
    CLASSES,
    SHA256,
    TASKS,
    as_lines,
    parse_record,
    published_records,
    read_records,
)

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "geneval_evaluation_metadata.jsonl"
DOG = '{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}'


def test_prompts_are_those_published_byte_for_byte() -> None:
    if not PUBLISHED.is_file():
        pytest.skip(f"the published file is not at {PUBLISHED}")
    made = as_lines(published_records()).encode()
    assert made == PUBLISHED.read_bytes()
    assert hashlib.sha256(made).hexdigest() == SHA256


def test_prompts_are_as_many_and_as_varied_as_published() -> None:
    records = published_records()
    counted = Counter(record["tag"] for record in records)
    assert [counted[task] for task in TASKS] == [80, 99, 80, 94, 100, 100]
    assert list(dict.fromkeys(record["tag"] for record in records)) == list(TASKS)
    assert len({record["prompt"] for record in records}) == len(records) == 553
    relations = Counter(e["position"][0] for r in records for e in r["include"] if "position" in e)
    assert relations == {"left of": 19, "right of": 27, "above": 26, "below": 28}
    assert Counter(r["include"][0]["count"] for r in records if "exclude" in r) == {2: 26, 3: 28, 4: 26}
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert CLASSES[64:67] == ("computer mouse", "tv remote", "computer keyboard")
    # "people" are never coloured, and plurals are left as they were published
    assert not any(e["class"] == "person" for r in records for e in r["include"] if "color" in e)
    assert any("benchs" in record["prompt"] for record in records)


def test_other_random_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "SEED", 44)
    with pytest.raises(ConfigError, match=r"must have the sha256 5c48e0813e81 .* data=FILE"):
        published_records()


def test_a_file_of_records_is_read_in_any_usual_encoding(tmp_path: Path) -> None:
    records = published_records()[170:200]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file = tmp_path / f"{encoding}.jsonl"
        file.write_text(as_lines(records), encoding=encoding)
        assert read_records(file) == records
    windows = tmp_path / "windows.jsonl"
    windows.write_bytes(as_lines(records).replace("\n", "\r\n").encode())
    assert read_records(str(windows)) == records


def test_a_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    record = {**json.loads(DOG), "prompt": "a dog\u2028"}
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_records(file) == [record]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[1]", "it is list instead of an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"tag": "a", "include": [{"class": "dog"}]}', "'prompt' must be a text but is None"),
        ('{"prompt": "x", "include": [{"class": "dog"}]}', "'tag' must be a text but is None"),
        ('{"prompt": "x", "tag": "a"}', "nothing can be judged"),
        ('{"prompt": "x", "tag": "a", "include": [{"count": 1}]}', "include.0.class"),
        ('{"prompt": "x", "tag": "a", "include": [{"class": "dog", "count": 0}]}', "include.0.count"),
        ('{"prompt": "x", "tag": "a", "include": [{"class": "dog", "color": "teal"}]}', "must be one of red"),
        (
            '{"prompt": "x", "tag": "a", "include": [{"class": "a"}, {"class": "b", "position": ["on", 0]}]}',
            "must be one of left of",
        ),
        (
            '{"prompt": "x", "tag": "a", "include": [{"class": "a", "position": ["below", 1]}, '
            '{"class": "b"}]}',
            "does not come before it",
        ),
        (
            '{"prompt": "x", "tag": "a", "include": [{"class": "a", "position": ["above", 7]}]}',
            "names group 7",
        ),
    ],
)
def test_a_bad_record_is_named_by_its_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(f"{DOG}\n\n{line}\n")
    with pytest.raises(ConfigError, match="line 3 of") as caught:
        read_records(file)
    assert reason in str(caught.value) and "correct it" in str(caught.value)
    with pytest.raises(ValueError):
        parse_record(line)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable file"):
        read_records(tmp_path / "missing.jsonl")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(DOG.replace("dog", "café").encode("latin-1"))
    with pytest.raises(ConfigError, match="save the file as UTF-8"):
        read_records(latin)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(ConfigError, match="at least one record"):
        read_records(empty)


def test_a_record_that_occurs_again_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(f"{DOG}\n{DOG.replace('dog', 'cat')}\n{DOG}\n")
    with pytest.warns(SearchWarning, match=r"1 lines .* line 3; each counts once"):
        assert [record["include"][0]["class"] for record in read_records(file)] == ["dog", "cat"]
