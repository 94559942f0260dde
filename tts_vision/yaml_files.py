"""Settings in YAML, read and written so that texts stay texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from tts_vision.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by the core schema of YAML 1.2: ``no``, ``16:9`` and ``010`` are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})\\Z"), list(_first)
        )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_settings(path: Path | str, settings: type[BaseModel]) -> dict[str, Any]:
    """The settings in a YAML file; a setting of text is read as text, whatever it looks like.

    Args:
        path: The file.
        settings: Has their types.

    Raises:
        ConfigError: If there are none.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            return _mapping(loader, node, settings, str(path))
        found = type(loader.construct_document(node)).__name__ if node is not None else "nothing"
    except OSError as error:
        raise ConfigError(
            f"A configuration must be a readable file but {str(path)!r}: {error.strerror}."
        ) from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(
            f"A configuration must be YAML but {str(path)!r} is not: {where}; correct that line."
        ) from None
    raise ConfigError(
        f"A configuration must hold 'key: value' lines but {str(path)!r} holds {found}; "
        "the config.yaml of any result folder is an example."
    )


def _mapping(loader: _Loader, node: yaml.MappingNode, settings: type[BaseModel], path: str) -> dict[str, Any]:
    """The mapping of a node, its values by the types of `settings`."""
    loader.flatten_mapping(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.tag)
        if key in values:
            raise ConfigError(
                f"A configuration must set {key!r} once but {path!r} sets it again in line "
                f"{key_node.start_mark.line + 1}; remove one."
            )
        field = settings.model_fields.get(key)
        annotation = Any if field is None else field.annotation
        group = group_of(annotation)
        if group is not None and isinstance(value_node, yaml.MappingNode):
            values[key] = _mapping(loader, value_node, group, path)
        elif _is_text(annotation) and _is_plain(value_node):
            values[key] = value_node.value
        else:
            values[key] = loader.construct_object(value_node, deep=True)
    return values


def _is_plain(node: yaml.Node) -> bool:
    """Whether a node is a scalar without quotes and tag that would be read as a number or a truth value."""
    kinds = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in kinds


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field is, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _is_text(annotation: Any) -> bool:
    """Whether a setting is a text, or None."""
    return annotation is str or set(get_args(annotation)) == {str, type(None)}
