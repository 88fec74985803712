"""YAML that a person writes, checked by a pydantic model: reading, merging, and naming the mistake.

Plain problems raise `ValueError` with a sentence; the caller gives them its own code and remedy. A
document made to do harm is refused with `E_YAML`: one that names a Python object, is longer than a
person writes, or repeats itself by aliases until it fills the memory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hepar.errors import UsageError

Tree = dict[str, Any]
TAGS = ("name", "kind")
_MAX_BYTES = 2**20
_MAX_NODES = 100_000
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read(path: Path, base: Path | None = None) -> Tree:
    """Read a mapping, laid over the one file that its `extends` names.

    Args:
        path: YAML file; `extends` is relative to it and goes one level deep.
        base: file to lay it over instead.

    Raises:
        ValueError: unreadable, not a mapping, or a base that extends another file.
    """
    tree = _read_one(path)
    named = tree.pop("extends", None)
    if named is None and base is None:
        return tree
    if named is not None and not isinstance(named, str):
        raise ValueError(f"{path.name}: extends must be a file name, got {named!r}.")
    file = base or path.parent / str(named)
    below = _read_one(file)
    if "extends" in below:
        raise ValueError(f"{path.name} extends {file.name}, which itself extends another file.")
    return merge(below, tree)


def load(text: bytes | str, name: str) -> Any:
    """A document of plain data, as `yaml.safe_load` reads it.

    Args:
        text: the document.
        name: of its file, for messages.

    Raises:
        UsageError: `E_YAML`, it is larger or more deeply nested than a person writes, aliases make
            it large, or it names an object.
        yaml.YAMLError: it is not YAML.
    """
    if len(text) > _MAX_BYTES:
        raise _hostile(f"{name} holds {len(text)} bytes; {_MAX_BYTES} are allowed.")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Counted before anything is made of it: aliases and merge keys repeat what they name.
        if _is_longer(node, _MAX_NODES):
            raise _hostile(f"{name} repeats itself by aliases to more than {_MAX_NODES} values.")
        return loader.construct_document(node)
    except RecursionError:
        raise _hostile(f"{name} is nested too deeply.") from None
    except yaml.constructor.ConstructorError as error:
        if "!" not in str(error.problem) and "tag:" not in str(error.problem):
            raise
        raise _hostile(f"{name} names an object: {error.problem}.") from None
    finally:
        loader.dispose()


def _is_longer(node: yaml.Node, limit: int) -> bool:
    """Whether a document has more than `limit` values, each counted as often as it is named."""
    waiting, count = [node], 0
    while waiting:
        here = waiting.pop()
        count += 1
        if count + len(waiting) > limit:
            return True
        if isinstance(here, yaml.SequenceNode):
            waiting += here.value
        elif isinstance(here, yaml.MappingNode):
            waiting += [part for pair in here.value for part in pair]
    return False


def _hostile(message: str) -> UsageError:
    return UsageError(
        "E_YAML", "recipe", message, "Use a file of plain values, and only one that you trust."
    )


def _read_one(path: Path) -> Tree:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _hostile(f"{path.name} holds {path.stat().st_size} bytes.")
        tree = _numbers(load(path.read_text(encoding="utf-8"), path.name))
    except OSError as error:
        raise ValueError(f"Cannot read {path.name}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path.name} must hold a mapping, got {type(tree).__name__}.")
    return tree


def _numbers(tree: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a person means a number."""
    if isinstance(tree, dict):
        return {str(key): _numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_numbers(value) for value in tree]
    if isinstance(tree, str) and _EXPONENT.fullmatch(tree):
        return float(tree)
    return tree


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """`top` over `base`, section by section.

    A section that names another member of a union (by a key of `TAGS`) replaces the one below; one
    below that names none holds for any member.
    """
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = value
        if not isinstance(value, Mapping) or not isinstance(below, Mapping):
            continue
        if all(tag not in value or value[tag] == below.get(tag, value[tag]) for tag in TAGS):
            merged[key] = merge(below, value)
    return merged


def apply(tree: Mapping[str, Any], override: str) -> Tree:
    """Set one key.

    Args:
        tree: left as it is.
        override: `a.b=c`, c being YAML.

    Raises:
        ValueError: not of that form, or `a` is not a section.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"--set {override!r} is not of the form a.b=c.")
    try:
        value = _numbers(load(text, "--set"))
    except yaml.YAMLError:
        raise ValueError(f"--set {override!r}: {text!r} is not a YAML value.") from None
    result = dict(tree)
    here = result
    for depth, name in enumerate(names[:-1]):
        below = here.get(name, {})
        if not isinstance(below, Mapping):
            section = ".".join(names[: depth + 1])
            raise ValueError(f"--set {override!r}: {section} is not a section.")
        here[name] = dict(below)
        here = here[name]
    here[names[-1]] = value
    return result


def members(model: type[BaseModel], field: str) -> dict[str, type[BaseModel]]:
    """The members of a discriminated union by the value of their tag."""
    info = model.model_fields[field]
    tag = str(info.discriminator)
    return {m.model_fields[tag].default: m for m in get_args(info.annotation)}


def explain(error: ValidationError, model: type[BaseModel], tree: Mapping[str, Any]) -> str:
    """Every problem in one line: its key, what is wrong, and the nearest name that exists."""
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        location = list(item["loc"])
        fields = model.model_fields
        if len(location) > 1 and location[0] in fields and fields[location[0]].discriminator:
            del location[1]  # pydantic names the member of the union; the file does not
        key = ".".join(str(part) for part in location) or "document"
        hint = _nearest(location, item["type"], model, tree)
        problems.append(f"{key}: {item['msg'].rstrip('.')}{hint}.")
    return " ".join(problems)


def _nearest(
    location: list[Any], kind: str, model: type[BaseModel], tree: Mapping[str, Any]
) -> str:
    if kind == "union_tag_invalid":
        field = str(location[0])
        known = list(members(model, field))
        word = str(tree[field].get(model.model_fields[field].discriminator))
    elif kind == "extra_forbidden":
        known = _known_fields(location[:-1], model, tree)
        word = str(location[-1])
    else:
        return ""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def _known_fields(
    location: list[Any], model: type[BaseModel], tree: Mapping[str, Any]
) -> list[str]:
    """Names of the section at `location`, following unions by the tags found in `tree`."""
    here: Any = model
    section: Any = tree
    for part in location:
        info = here.model_fields[part]
        section = section[part]
        if info.discriminator:
            here = members(here, part)[section[info.discriminator]]
        else:
            here = info.annotation
    return list(here.model_fields)
