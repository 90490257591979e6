"""Reads files by a schema for every kind of file; what does not fit is an error of one line.

A schema is any type that msgspec knows: a Struct, a dataclass, dict[str, int]. Files come from anywhere, so nothing in
them is trusted: deep nesting, aliases that grow and numbers of thousands of digits are refused like any other nonsense.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import yaml

from dpotool.errors import DpotoolError, refuse_endless
from dpotool.settings.fields import Settings
from dpotool.wording import count

T = TypeVar("T")
S = TypeVar("S", bound=Settings)
_KEY = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_PLAIN = {"object": "a mapping", "array": "a list", "str": "text", "int": "a whole number", "float": "a number"}
_PLAIN |= {"bool": "true or false", "null": "nothing"}
_TOO_DEEP = re.compile(r"(?:[\[{]\s*){100}|(?:- +){100}")
_LONGEST = 60
_LARGEST = 4_000_000
_LONGEST_NUMBER = 400


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: no file of settings needs one, and a few lines of them stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1} refers to another place by an alias, which is not read here")
        return super().compose_node(parent, index)


def _refuse_long_number(loader: _PlainLoader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > _LONGEST_NUMBER:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds a number of {len(node.value)} digits")
    return loader.construct_yaml_int(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _refuse_long_number)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file: nothing else in the house reads a whole one.

    Raises OSError, also for a pipe or a device, of which reading may never end.
    """
    return refuse_endless(path).read_bytes()


def load_text(path: Path) -> str:
    """Returns the text of a file. Raises OSError as `read_bytes`, and ValueError for what is no UTF-8."""
    return read_bytes(path).decode("utf-8")


def load_json(path: Path) -> Any:
    """Returns what a JSON file says. Raises OSError as `read_bytes`, and ValueError as `parse_json`."""
    return parse_json(read_bytes(path))


def load_yaml(path: Path) -> Any:
    """Returns what a YAML file says. Raises OSError as `read_bytes`, and ValueError as `parse_yaml`."""
    return parse_yaml(load_text(path))


def parse_yaml(text: str) -> Any:
    """Returns what a YAML text says; raises ValueError in one line for what cannot be read."""
    return copy.deepcopy(_parse_yaml(text))


@lru_cache(maxsize=256)
def _parse_yaml(text: str) -> Any:
    """A command opens the same run.yaml many times, and the parser, which is Python, takes 30 ms each time."""
    if len(text) > _LARGEST:
        raise ValueError(f"it has {count(len(text), 'character')}, and no settings have more than {_LARGEST:,}")
    if _TOO_DEEP.search(text):  # the parser would find out too, after seconds
        raise ValueError("it is nested too deeply")
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(_first_line(error)) from None


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text says; raises ValueError in one line for what cannot be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(_first_line(error)) from None


def read_json(path: Path, schema: type[T], *, what: str, remedy: str) -> T:
    """Reads a JSON file and checks it.

    Args:
        what: the kind of file, as in "cannot be read as a summary".

    Raises DpotoolError when it cannot be read or does not fit.
    """
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        raise DpotoolError(f"cannot be read as {what} ({error})", where=str(path), remedy=remedy) from error
    return check_value(value, schema, where=str(path), remedy=remedy)


def check_value(value: Any, schema: type[T], *, where: str, remedy: str) -> T:
    """Returns plain values as a type; raises DpotoolError that names file, key, what is expected and what is there."""
    try:
        return msgspec.convert(value, schema)
    except UnicodeEncodeError as error:  # half of a character, which JSON can write and no text can hold
        raise DpotoolError(
            "holds text that is no Unicode", where=where, got=ascii(error.object)[:50], remedy=remedy
        ) from error
    except (msgspec.ValidationError, RecursionError) as error:
        text, _, path = str(error).partition(" - at ")
        text = re.sub(r"^Object missing required field `(.*)`$", r"lacks \1", text)
        keys = [name or place for name, place in _KEY.findall(path.strip("`").rpartition("$")[2])]
        expected = re.search(r"Expected (.*?)(?:, got .*)?$", text)
        key = ".".join(keys).replace("....", "")
        raise DpotoolError(
            "is not what it has to be" if expected else text[:1].lower() + text[1:],
            where=_join(where, key),
            expected=_say_types(expected[1]) if expected else None,
            got=_show(_follow(value, keys)),
            remedy=remedy,
        ) from error


def read_settings(values: Mapping[str, Any], settings: type[S], *, where: str, remedy: str) -> S:
    """Returns the settings of a command in a run.yaml; raises DpotoolError where a value is of another type."""
    hints = get_type_hints(settings)
    for name in values.keys() & hints.keys():
        check_value(values[name], hints[name], where=f"{where}.{name}", remedy=remedy)
    return settings.read(values)


def _join(where: str, key: str) -> str:
    """Returns "run.yaml: config.beta", whatever part of the path `where` has already."""
    return ".".join(filter(None, (where, key))) if ": " in where else ": ".join(filter(None, (where, key)))


def find_not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Yields the keys of all numbers in nested plain values that are NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from find_not_finite(each, f"{path}.{key}" if path else str(key))


def _follow(value: Any, keys: list[str]) -> Any:
    """Returns the value at a place; for `...`, an element that msgspec does not name, the value around it."""
    for key in keys:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            break
    return value


def _say_types(text: str) -> str:
    words = re.sub(r"`([^`]*)`", lambda found: " or ".join(_PLAIN.get(w, w) for w in found[1].split(" | ")), text)
    return re.sub(r" ([<>]=?) (-?[\d.]+)$", lambda found: f" {found[1]} {float(found[2]):g}", words)


def _show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
