"""TOML into frozen pydantic models, and errors that say in one line what to change."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Tag, ValidationError

Model = TypeVar("Model", bound=BaseModel)

IN_TOML = {
    "dict_type": "table",
    "model_type": "table",
    "model_attributes_type": "table",
    "list_type": "list",
    "tuple_type": "list",
}
"""What pydantic's kinds of error ask for, as a user of TOML calls it."""


class ConfigError(ValueError):
    """A file or setting that cannot be used as it is; the message is one line with the remedy."""


def parse_model(model: type[Model], data: Mapping[str, Any], *, source: str) -> Model:
    """Returns ``model`` made from ``data``; raises `ConfigError` naming the key, and the nearest known one."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(model, data, error)}") from None


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message about an unknown name: the nearest known one, or nothing.

    Nothing too where the name itself is among them: it is known in another place than this.
    """
    nearest = [one for one in difflib.get_close_matches(name, list(known), n=1) if one != name]
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _first_line(model: type[BaseModel], data: Mapping[str, Any], error: ValidationError) -> str:
    # An unknown key says more than the missing one that it was meant to be, the inside of a union's case more than the
    # outside.
    first = max(error.errors(), key=lambda one: (one["type"] == "extra_forbidden", len(one["loc"])))
    path = _path(first["loc"], data)
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        return f"unknown key {key!r}{nearest_name(path[-1], known) or '; known: ' + ', '.join(known)}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return f"missing key {'.'.join([*path, first['loc'][-1]])!r}"
    message = _message(first)
    return f"{key}: {message}" if key else message


def _message(error: Mapping[str, Any]) -> str:
    """Returns what is wrong, in the words of TOML."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_not_found":
        return f"Input needs its {context['discriminator'].strip(chr(39))}"
    if error["type"] == "union_tag_invalid":
        known = [one.strip("' ") for one in context["expected_tags"].split(",")]
        name = context["discriminator"].strip("'")
        return f"unknown {name} {context['tag']!r}{nearest_name(context['tag'], known)}; known: {', '.join(known)}"
    if error["type"] in IN_TOML:
        return f"Input should be a {IN_TOML[error['type']]}"
    return str(error["msg"].removeprefix("Value error, "))


def _path(location: tuple[int | str, ...], data: Any) -> list[str]:
    """Returns the keys of ``location`` as they stand in the file, without pydantic's names for the cases of a union; an
    entry of a list is its place, from 1.
    """
    path: list[str] = []
    for part in location:
        if isinstance(data, Mapping) and part in data:
            data = data[part]
            path.append(str(part))
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
            path.append(f"#{part + 1}")
    return path


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Returns the keys that are known at ``location`` inside ``model``."""
    cases = _cases_in(model)
    for part in location:
        fields = [one.model_fields[part] for one, _ in cases if part in one.model_fields]
        nested = [found for field in fields for found in _cases_in(field.annotation)]
        # a union's case; or a place in a list, or a name that the user chose, in a table of such models
        cases = nested or [(one, names) for one, names in cases if part in names] or cases
    return list(dict.fromkeys(name for one, _ in cases for name in one.model_fields))


def _cases_in(annotation: Any, tag: str | None = None) -> list[tuple[type[BaseModel], list[str]]]:
    """Returns the models that a type such as ``dict[str, str | Model]`` holds, and what pydantic may call each as the
    case of a union: its name, its tag, or what its field for the tag says.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        defaults = [field.default for field in annotation.model_fields.values()]
        return [(annotation, [one for one in (annotation.__name__, tag, *defaults) if isinstance(one, str)])]
    tag = next((one.tag for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Tag)), None)
    return [found for inner in get_args(annotation) for found in _cases_in(inner, tag)]


def override(data: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Returns a copy of ``data`` with one ``table.key=value`` applied; the value is TOML, or else plain text.

    >>> override({"plan": {"epochs": 4}}, "plan.epochs=8")
    {'plan': {'epochs': 8}}
    """
    path, separator, text = setting.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"--set takes TABLE.KEY=VALUE, got {setting!r}")
    keys = [key.strip() for key in path.split(".")]
    result = dict(data)
    table = result
    for key in keys[:-1]:
        inner = table.get(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {path}: {key!r} is a value, not a table")
        table[key] = dict(inner)
        table = table[key]
    table[keys[-1]] = _toml_value(text.strip())
    return result


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
