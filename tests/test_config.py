"""Settings: YAML, overrides, specs, hash, and the message for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tts_vision import cli, registry
from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, Spec, override
from tts_vision.errors import ConfigError
from tts_vision.features import PAPER_FEATURES, default_features


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("clip", "clip", {}),
        ("clip:model=ViT-B/32,scale=2", "clip", {"model": "ViT-B/32", "scale": "2"}),
        ("clip:model=hf-hub:org/x,pair=a,b", "clip", {"model": "hf-hub:org/x", "pair": "a,b"}),
        ("package.module:attr", "package.module:attr", {}),
        ("package.module:attr:k=1", "package.module:attr", {"k": "1"}),
        ("dir/file.py@name", "dir/file.py@name", {}),
        ("dir/file.py@name:k=1", "dir/file.py@name", {"k": "1"}),
    ],
)
def test_spec_reads_and_writes_every_form(text: str, name: str, params: dict[str, str]) -> None:
    spec = Spec.parse(text)
    assert (spec.name, dict(spec.params)) == (name, params)
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "members", "params"),
    [
        ("ensemble(a)", ["a"], {}),
        ("ensemble(hpsv2.1, clip_score):how=zscore", ["hpsv2.1", "clip_score"], {"how": "zscore"}),
        ("e(a:k=1,l=2, b):weights=2,1,how=rank", ["a:k=1,l=2", "b"], {"weights": "2,1", "how": "rank"}),
        ("c(e(a, b):weights=[2,1],how=rank, d)", ["e(a, b):weights=[2,1],how=rank", "d"], {}),
        ("c(e(a:k=1, b):how=min, d)", ["e(a:k=1, b):how=min", "d"], {}),
        ("e(pkg.mod:attr, dir/file.py@f:k=1)", ["pkg.mod:attr", "dir/file.py@f:k=1"], {}),
    ],
)
def test_members_stand_in_parentheses(text: str, members: list[str], params: dict[str, str]) -> None:
    spec = Spec.parse(text)
    assert [str(member) for member in spec.members] == members
    assert dict(spec.params) == params
    assert Spec.parse(str(spec)) == spec


def test_spaces_around_members_are_free() -> None:
    assert Spec.parse(" e ( a:k=1 , l=2,b ):how=x ") == Spec.parse("e(a:k=1,l=2, b):how=x")


def test_parentheses_in_the_name_of_a_file_are_no_members() -> None:
    spec = Spec.parse("my files (old)/v.py@f:k=1")
    assert (spec.name, spec.members, dict(spec.params)) == ("my files (old)/v.py@f", (), {"k": "1"})
    assert Spec.parse("clip:path=a(b)").params == {"path": "a(b)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ensemble(a, b", "Parentheses of a plugin must match but got 'ensemble\\(a, b'; close them"),
        ("ensemble()", "A plugin is written 'name'.* but got ''"),
        ("ensemble(a,)", "A plugin is written 'name'.* but got ''"),
        ("(a, b)", "A plugin is written 'name'"),
        ("", "A plugin is written 'name'"),
    ],
)
def test_mistakes_in_members_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Spec.parse(text)


def test_an_algorithm_has_no_members() -> None:
    with pytest.raises(ConfigError, match=r"An algorithm has no members .* but got 'best_of_n\(a\)'"):
        RunConfig(prompt="a", algorithm="best_of_n(a)")


def test_the_holdout_is_part_of_the_run() -> None:
    assert RunConfig(prompt="a", holdout_verifier="b").hash != RunConfig(prompt="a").hash


def test_the_model_brings_its_verifier() -> None:
    config = RunConfig(prompt="a")
    assert (config.model, config.verifier) == ("playground", "playground_clip")
    assert RunConfig(prompt="a", model="playground-var").verifier == "playground_clip"
    assert RunConfig(prompt="a", model="owner/name", verifier="v").model == "owner/name"


def test_a_model_of_ones_own_brings_its_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.Entry("model", "mine", len, verifier="clip_score:x=1", features="clip_features")
    monkeypatch.setitem(registry._ENTRIES, ("model", "mine"), entry)
    assert RunConfig(prompt="a", model="mine:/folder").verifier == "clip_score:x=1"
    assert override({"model": "mine"}, ["verifier.y=2"])["verifier"] == "clip_score:x=1,y=2"
    assert [default_features(model) for model in ("mine", "owner/name")] == ["clip_features", PAPER_FEATURES]
    assert default_features(RunConfig(prompt="a").model) == "playground_features"


def test_no_loader_is_imported_to_find_the_verifier() -> None:
    code = (
        "import sys\n"
        "from tts_vision.config import RunConfig, ConfigError\n"
        "for settings in {}, {'model': 'owner/name'}:\n"
        "    try: RunConfig(prompt='a', **settings)\n"
        "    except ConfigError: print('refused')\n"
        "print('torch' in sys.modules, *(m for m in sys.modules if m.startswith('tts_vision.pipelines.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused", "False tts_vision.pipelines.bundled"]


@pytest.mark.parametrize(
    ("given", "target"),
    [(None, None), ("satisfied", "satisfied"), (0.9, 0.9), (1, 1.0), ("0.9", 0.9), (" -1e2", -100.0)],
)
def test_a_target_is_a_score_or_a_word(given: object, target: object, tmp_path: Path) -> None:
    config = RunConfig(prompt="a", target=given)
    assert config.target == target and type(config.target) is type(target)
    (tmp_path / "config.yaml").write_text(config.dump())
    assert RunConfig.load(tmp_path / "config.yaml") == config
    assert config.content["target"] == target
    assert (config.hash == RunConfig(prompt="a").hash) == (target is None)


@pytest.mark.parametrize(
    "target",
    ["nan", "inf", float("nan"), float("-inf"), "satisfy", "", True, [0.5], 10**400],
    ids=lambda value: str(value)[:8],
)
def test_a_target_that_cannot_be_reached_is_refused(target: object) -> None:
    with pytest.raises(ConfigError, match=r"must be a finite score or 'satisfied' but got .*; write"):
        RunConfig(prompt="a", target=target)


@pytest.mark.parametrize(
    ("arguments", "target"),
    [((), None), (("--until", "-0.5"), -0.5), (("--until", "satisfied"), "satisfied")],
)
def test_until_sets_the_target(
    arguments: tuple[str, ...], target: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr(
        "tts_vision.cli.generate.run_search", lambda config, *args, **kwargs: seen.append(config)
    )
    done = CliRunner().invoke(cli.app, ["generate", "a", *arguments])
    assert done.exit_code == 0, done.output
    assert [config.target for config in seen] == [target]


def test_a_wrong_until_is_told() -> None:
    done = CliRunner().invoke(cli.app, ["generate", "a", "--until", "soon"])
    assert done.exit_code == 2 and "must be a finite score or 'satisfied' but got 'soon'" in done.output


def test_yaml_gives_the_same_run_back(tmp_path: Path) -> None:
    config = RunConfig(
        prompt="zwei rote Kreise: ü",
        algorithm="evosearch",
        algorithm_params={"schedule": [0, 2], "beta": 0.2},
        target=0.25,
        sampler_options=SamplerOptions(eta=0.5, pipeline_kwargs={"num_inference_steps": 13}),
        model_options=ModelOptions(dtype="float16", lora=("a", "b")),
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.dump())
    assert RunConfig.load(path) == config
    assert RunConfig.load(path).hash == config.hash


def test_parameters_in_the_algorithm_spec_join_those_given() -> None:
    config = RunConfig(prompt="a", algorithm="best_of_n:n=4", algorithm_params={"chunk": 2})
    assert config.algorithm == "best_of_n"
    assert config.algorithm_params == {"n": "4", "chunk": 2}


def test_hash_covers_all_but_the_micro_batch() -> None:
    config = RunConfig(prompt="a")
    assert len(config.hash) == 12
    assert RunConfig(prompt="a", max_batch=3).hash == config.hash
    assert RunConfig(prompt="a", seed=1).hash != config.hash
    assert config.model_copy(update={"seed": 1}).hash == RunConfig(prompt="a", seed=1).hash


def test_overrides_reach_every_group() -> None:
    values = override(
        {"prompt": "a", "algorithm_params": {"n": 2, "chunk": 1}},
        [
            "algorithm.n=32",
            "sampler.eta=0.5",
            "pipeline.guidance_scale=4",
            "pipeline.negative_prompt=a=b",
            "model.dtype=float16",
            "verifier.scale=2",
            "holdout_verifier=hps",
            "seed=3",
            "sampler_options.sde=euler",
        ],
    )
    config = RunConfig(**values)
    assert config.algorithm_params == {"n": "32", "chunk": 1}, "its signature has the type"
    assert config.sampler_options.eta == 0.5
    assert config.sampler_options.sde == "euler"
    assert config.sampler_options.pipeline_kwargs == {"guidance_scale": 4, "negative_prompt": "a=b"}
    assert config.model_options.dtype == "float16"
    assert config.verifier == "playground_clip:scale=2"
    assert config.holdout_verifier == "hps"
    assert config.seed == 3
    joined = override({"verifier": "ensemble(a:k=1, b):how=rank"}, ["verifier.how=zscore"])
    assert joined["verifier"] == "ensemble(a:k=1, b):how=zscore"


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("pipeline.aspect_ratio=16:9", "16:9"),
        ("pipeline.guidance_scale=1e1", 10.0),
        ("pipeline.guidance_scale=-.5", -0.5),
        ("pipeline.height=512", 512),
        ("pipeline.x=010", "010"),
        ("pipeline.x=1_000", "1_000"),
        ("pipeline.x=0x10", "0x10"),
        ("pipeline.x=no", "no"),
        ("pipeline.x=2024-01-01", "2024-01-01"),
        ("pipeline.x=#1 blurry", "#1 blurry"),
        ("pipeline.x=a: b", "a: b"),
        ("pipeline.x=a=b", "a=b"),
        ("pipeline.x=", ""),
        ("pipeline.x=true", True),
        ("pipeline.x=False", False),
        ("pipeline.x=null", None),
        ("pipeline.x=[1, 2.5]", [1, 2.5]),
        ("pipeline.x=[1, 2", "[1, 2"),
        ('pipeline.x={"a": [1]}', {"a": [1]}),
        ('pipeline.x="5"', "5"),
        ("pipeline.negative_prompt=no", "no"),
        ("pipeline.negative_prompt=12", "12"),
        ("pipeline.negative_prompt= blurry ", " blurry "),
        ("pipeline.negative_prompt=blurry: yes", "blurry: yes"),
        ("pipeline.prompt_2=[red] circle", "[red] circle"),
    ],
)
def test_arguments_of_the_pipeline_are_read_as_python_and_json_do(assignment: str, value: object) -> None:
    found = override({}, [assignment])["sampler_options"]["pipeline_kwargs"]
    assert found == {assignment.partition("=")[0].removeprefix("pipeline."): value}
    assert type(next(iter(found.values()))) is type(value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("model.lora=/a/b, c.safetensors", ("/a/b, c.safetensors",)),
        ("model.lora=[/a/b, c]", ("/a/b", "c")),
        ('model.lora=["/a, b", "c"]', ("/a, b", "c")),
        ("model.revision=010", "010"),
        ("model.revision=1e5", "1e5"),
        ("model.variant=no", "no"),
        ("model.variant=", None),
        ("model.compile=yes", True),
        ("sampler.stochastic=no", False),
        ("sampler.stochastic=none", None),
        ("sampler.eta=1e-1", 0.1),
        ("sampler.preview_size=1e2", 100),
        ("seed=010", 10),
        ("prompt=no", "no"),
        ("prompt=16:9", "16:9"),
        ("prompt=#1 blurry", "#1 blurry"),
        ("prompt=null", "null"),
        ("prompt=[a, b]", "[a, b]"),
        ("budget=16", "16"),
        ("target=1e-1", 0.1),
        ("target=satisfied", "satisfied"),
        ("max_batch=null", None),
        ("holdout_verifier=", None),
        ('prompt_metadata={"tag": "no"}', {"tag": "no"}),
        ("prompt_metadata.tag=no", {"tag": "no"}),
    ],
)
def test_values_are_read_by_the_type_of_the_setting(assignment: str, value: object) -> None:
    config = RunConfig(**override({"prompt": "a", "holdout_verifier": "x"}, [assignment]))
    group, _, name = assignment.partition("=")[0].partition(".")
    owner = {"model": config.model_options, "sampler": config.sampler_options}.get(group, config)
    found = getattr(owner, name if owner is not config else group)
    assert found == value and type(found) is type(value)


def test_a_parameter_of_a_verifier_that_a_spec_cannot_hold_is_refused() -> None:
    assert override({"verifier": "v"}, ["verifier.template=a, b: {}"])["verifier"] == "v:template=a, b: {}"
    with pytest.raises(ConfigError, match="cannot hold ', key='"):
        override({"verifier": "v"}, ["verifier.template=a, b=c"])


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("prompt: no", "prompt", "no"),
        ("prompt: 12", "prompt", "12"),
        ("prompt: 1e1", "prompt", "1e1"),
        ("prompt: true", "prompt", "true"),
        ("prompt: 2024-01-01", "prompt", "2024-01-01"),
        ("prompt: 'null'", "prompt", "null"),
        ("budget: 16", "budget", "16"),
        ("seed: 7", "seed", 7),
        ("holdout_verifier: ~", "holdout_verifier", None),
        ("holdout_verifier: off", "holdout_verifier", "off"),
        ("target: 1e-1", "target", 0.1),
        ("model_options: {lora: a b}", "model_options.lora", ("a b",)),
        ("model_options: {revision: 010, variant: no}", "model_options.revision", "010"),
        ("sampler_options: {stochastic: false}", "sampler_options.stochastic", False),
        ("sampler_options: {pipeline_kwargs: {x: 16:9}}", "sampler_options.pipeline_kwargs", {"x": "16:9"}),
        ("sampler_options: {pipeline_kwargs: {x: no}}", "sampler_options.pipeline_kwargs", {"x": "no"}),
        ("sampler_options: {pipeline_kwargs: {x: 1e1}}", "sampler_options.pipeline_kwargs", {"x": 10.0}),
        ("sampler_options: {pipeline_kwargs: {x: 010}}", "sampler_options.pipeline_kwargs", {"x": "010"}),
        (
            "sampler_options: {pipeline_kwargs: {x: 190:20:30}}",
            "sampler_options.pipeline_kwargs",
            {"x": "190:20:30"},
        ),
        ("algorithm_params: {a: yes, b: [1, off]}", "algorithm_params", {"a": "yes", "b": [1, "off"]}),
        ("\ufeffprompt: a", "prompt", "a"),
    ],
)
def test_a_file_is_read_by_the_types_of_the_settings(
    text: str, path: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text + ("" if "prompt:" in text else "\nprompt: a"), encoding="utf-8")
    found: object = RunConfig.load(tmp_path / "c.yaml")
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_every_text_comes_back_from_the_file(tmp_path: Path) -> None:
    texts = [
        "no",
        "16:9",
        "1e1",
        "010",
        "0o7",
        ".5",
        "5.",
        "~",
        "null",
        "NULL",
        "<<",
        "=",
        "#1",
        "a: b",
        "- a",
    ]
    texts += [
        "2024-01-01",
        "1_000",
        "0x1F",
        "190:20:30",
        ".inf",
        "on",
        "ü…",
        "a\nb",
        " a ",
        "'",
        '"',
        "%x",
        "@y",
    ]
    for text in texts:
        config = RunConfig(
            prompt=f"{text}.",
            algorithm_params={"x": text},
            sampler_options=SamplerOptions(pipeline_kwargs={"x": text, text: [text]}),
        )
        (tmp_path / "config.yaml").write_text(config.dump(), encoding="utf-8")
        assert RunConfig.load(tmp_path / "config.yaml") == config, text
        # and from a reader of YAML 1.1
        assert yaml.safe_load(config.dump())["algorithm_params"] == {"x": text}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"guidance_scale": float("nan")},
            "guidance_scale of the pipeline must be finite but got nan; change it",
        ),
        ({"guidance_scale": "hi"}, "guidance_scale of the pipeline must be a number but got 'hi'"),
        ({"guidance_scale": [1.0, float("inf")]}, "guidance_scale of the pipeline must be finite"),
        ({"height": 0}, "height of the pipeline must be a whole number from 1 to 32768 but got 0"),
        ({"width": "abc"}, "width of the pipeline must be a whole number"),
        ({"num_frames": 2.5}, "num_frames of the pipeline must be a whole number"),
        ({"num_inference_steps": 10**9}, "num_inference_steps of the pipeline must be .* from 1 to 10000"),
        ({"height": 10**9}, "height of the pipeline must be a whole number from 1 to 32768"),
        ({"guidance_scale": 10**30}, "guidance_scale of the pipeline must be at most 1e"),
        ({"sigmas": 1}, "sigmas of the pipeline must be a list of numbers but got 1"),
        (
            {"prompt_embeds": [1, 2]},
            "prompt_embeds of the pipeline must be an object, which only Python can give",
        ),
        ({"ip_adapter_image": "a.png"}, "ip_adapter_image of the pipeline must be an object"),
        ({"cross_attention_kwargs": 1}, "cross_attention_kwargs of the pipeline must be an object"),
        ({"num_inference_steps": True}, "num_inference_steps of the pipeline must be a whole number"),
        ({"strength": 1.5}, "strength of the pipeline must be from 0 to 1"),
        ({"negative_prompt": 3}, "negative_prompt of the pipeline must be a text but got 3"),
    ],
)
def test_arguments_that_no_pipeline_takes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplerOptions(pipeline_kwargs=arguments)


def test_live_objects_are_described_by_their_content() -> None:
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")

    def config(image: object) -> RunConfig:
        return RunConfig(prompt="a", sampler_options=SamplerOptions(pipeline_kwargs={"image": image}))

    assert config(red).hash == config(red.copy()).hash != config(blue).hash
    assert config(red).live == ["sampler_options"]
    assert config(np.zeros(3)).plain()["sampler_options"]["pipeline_kwargs"]["image"].startswith("<ndarray ")
    assert RunConfig(prompt="a").live == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "  "}, r"A prompt must say .* but got '  '; write"),
        ({}, "needs 'prompt'"),
        ({"prompt": "a", "sed": 1}, "got 'sed'; did you mean 'seed'"),
        ({"prompt": "a", "seed": -1}, "seed of a run must be greater than or equal to 0 but got -1"),
        ({"prompt": "a", "max_batch": 0}, "max_batch of a run must be .* but got 0"),
        (
            {"prompt": "a", "model": "org/name"},
            "needs a verifier but none was given for model 'org/name'; name one",
        ),
        ({"prompt": "a", "model": "playgroud"}, "for model 'playgroud'; did you mean 'playground'"),
        ({"prompt": "a", "model": "diffusers"}, "for model 'diffusers'; name one"),
        ({"prompt": "a", "model": "var-d16:/x"}, "for model 'var-d16:/x'; name one"),
        ({"prompt": "a", "model": 3, "verifier": "v"}, "model of a run must be a valid string but got 3"),
        (
            {"prompt": "a", "model_options": {"dtype": "f16"}},
            "dtype of the model must be 'float32'.* got 'f16'",
        ),
        ({"prompt": "a", "model_options": {"dytpe": None}}, "got 'dytpe'; did you mean 'dtype'"),
        ({"prompt": "a", "sampler_options": {"eta": -1}}, "eta of the sampler must be .* but got -1"),
        ({"prompt": "a", "sampler_options": {"eta": "inf"}}, "eta of the sampler must be a finite number"),
        ({"prompt": "a", "sampler_options": {"diffusion_norm": float("nan")}}, "diffusion_norm .* must be"),
        ({"prompt": "a", "seed": 2**63}, "seed of a run must be less than"),
        ({"prompt": "a \udcff"}, "prompt of a run must be Unicode text but got"),
        ({"prompt": "a", "algorithm": ":n=1"}, "A plugin is written 'name'"),
        (
            {"prompt": "a", "prompt_metadata": {"x": [float("nan")]}},
            "Numbers in prompt_metadata must be finite",
        ),
        (
            {"prompt": "a", "algorithm": "x", "algorithm_params": "n"},
            "algorithm_params of a run must be names with values but",
        ),
        (
            {"prompt": "a", "algorithm": "x", "algorithm_params": 3},
            "algorithm_params of a run must be names with values but",
        ),
        (
            {"prompt": "a", "model": "", "verifier": "v"},
            "A model, an algorithm and a verifier are named but got ''",
        ),
    ],
)
def test_mistakes_are_told_in_one_message(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("algorithm.n", "is written 'key=value'"),
        ("=3", "is written 'key=value'"),
        ("algoritm.n=3", "got 'algoritm.n'; did you mean 'algorithm.n'"),
        ("seed.x=3", "inside 'seed'"),
        ("verifier.x=3", "needs a verifier but none was given for model 'owner/name'"),
    ],
)
def test_wrong_overrides_are_told(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override({"seed": 1, "model": "owner/name"}, [assignment])


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        RunConfig.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="must be YAML but"):
        RunConfig.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds list"):
        RunConfig.load(tmp_path / "list.yaml")
    for text, message in [
        ("", "holds nothing"),
        ("seed: 1\nseed: 2", "must set 'seed' once but .* sets it again in line 2; remove one"),
        ("prompt: !!python/name:os.system x", "must be YAML but"),
        ("prompt: a\n---\nprompt: b", "must be YAML but"),
        ("[" * 5000, "must be YAML but"),
        ("seed: " + "9" * 5000, "must be YAML but"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            RunConfig.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"prompt: \xff\xfe")
    with pytest.raises(ConfigError, match="must be YAML but"):
        RunConfig.load(tmp_path / "bad.yaml")
