"""The base of every settings class (strict, frozen, no unknown keys), and mistakes in them as one line each."""

import re
import reprlib
from typing import Any

from pydantic import BaseModel, ConfigDict

SHORT = reprlib.Repr()  # YAML's aliases make a few bytes a value of gigabytes
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


class Settings(BaseModel):
    """Hold the parameters of one part of the library, validated and immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def value_at(content: Any, key: str) -> list[Any]:
    """Return the value under a dotted ``key`` of nested dictionaries, alone in a list; an empty one if it is absent."""
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return []
        content = content[part]
    return [content]


def explanation(settings: type[Settings], keys: dict[str, str], mistake: Any) -> str:
    """Say in a few words what a mistake in the input of ``settings`` is, as pydantic reports it.

    ``keys`` are what the input calls the fields of ``settings``.
    """
    names = {field.alias or name: name for name, field in settings.model_fields.items()}
    first, *rest = mistake["loc"] or ("",)
    key = ".".join([keys.get(names.get(str(first), str(first)), str(first)), *map(str, rest)])
    if mistake["type"] == "extra_forbidden":
        return f"{key}: unknown parameter; remove it or correct its name ({_known(settings, mistake['loc'])})"
    if mistake["type"] == "missing":
        return f"{key}: is missing"
    message = mistake["msg"].removeprefix("Value error, ")
    if isinstance(mistake["input"], dict) and mistake["type"] == "value_error":  # a rule within a section
        names_its_key = re.match(r"\w+: ", message)  # of a field of the section
        return f"{key}.{message}" if key and names_its_key else f"{key}: {message}" if key else message
    return f"{key}: {SHORT.repr(mistake['input'])} is wrong: {message}"


def _known(settings: type[Settings], location: tuple[Any, ...]) -> str:
    """Name the keys that are known where an unknown one was found."""
    model: Any = settings
    for part in location[:-1]:
        fields = getattr(model, "model_fields", None)
        if fields is None:
            continue  # a name within a dictionary, such as a variant's
        by_key = {field.alias or name: field for name, field in fields.items()}
        field = by_key.get(part) or fields.get(part)
        if field is None:
            continue  # a name within a dictionary, such as a variant's
        model = next((kind for kind in (field.annotation, *_arguments(field.annotation)) if _is_settings(kind)), None)
    return "known: " + ", ".join(getattr(model, "model_fields", {}))


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)
