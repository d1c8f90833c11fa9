"""Mappings into frozen dataclasses, once, at the door: unknown keys and wrong types are errors.

Knows dataclasses and typing, and nothing of what the settings mean.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sagecache.errors import SagecacheError, nearest

T = TypeVar("T")


def build(cls: type[T], values: object, file: str | Path, where: str = "") -> T:
    """Build the dataclass ``cls`` from a mapping, recursively.

    file and where (a dotted key) go into the error. Raises SagecacheError on a value that is no
    mapping, on an unknown or missing key, and on a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise SagecacheError(
            f"expected a dict, got {values!r}",
            file=file,
            record=where or None,
            fix="On the command line set its leaves: --cfg-options a.b=1.",
        )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    built = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise SagecacheError(f"unknown key '{dotted}'", file=file, fix=_suggest(key, fields))
        built[key] = convert(hints[key], value, file, dotted)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in built:
            dotted = f"{where}.{name}" if where else name
            raise SagecacheError(f"missing key '{dotted}'", file=file, fix="Add it.")
    try:
        return cls(**built)
    except SagecacheError as error:  # its own check of ranges, which knows no file
        if error.file is not None:
            raise
        raise SagecacheError(error.message, file=file, record=where or None, fix=error.fix) from None


def convert(annotation: Any, value: Any, file: str | Path, where: str) -> Any:
    """Return ``value`` as ``annotation`` asks, or raise SagecacheError. ints pass as floats, never bools."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(a for a in arguments if a is not type(None)), value, file, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise SagecacheError(
                f"'{where}' can't be {value!r}", file=file, fix=_suggest(str(value), arguments)
            )
        return value
    if dataclasses.is_dataclass(annotation):
        return build(annotation, value, file, where)
    if origin is dict or annotation is dict:
        if not isinstance(value, Mapping):
            raise _mismatch("a dict", value, file, where)
        inner = arguments[1] if arguments else Any
        return {key: convert(inner, item, file, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        return _convert_tuple(arguments, value, file, where)
    return _convert_scalar(annotation, value, file, where)


def _convert_tuple(arguments: tuple, value: Any, file: str | Path, where: str) -> tuple:
    if isinstance(value, str) and arguments == (str, ...):
        return (value,)  # a lone name where a list of names is meant
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _mismatch("a list", value, file, where)
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(convert(arguments[0], item, file, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise _mismatch(f"{len(arguments)} values", value, file, where)
    return tuple(
        convert(a, item, file, f"{where}[{i}]")
        for i, (a, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(annotation: Any, value: Any, file: str | Path, where: str) -> Any:
    if annotation is Path and isinstance(value, (str, Path)):
        return Path(value)
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, bool):
        raise _mismatch("int", value, file, where)
    if not isinstance(value, annotation):
        raise _mismatch(annotation.__name__, value, file, where)
    return value


def call_with(
    function: Callable[..., T],
    options: Mapping,
    file: str | Path,
    where: str,
    *,
    also: Sequence[str] = (),
    **given: Any,
) -> T:
    """Call ``function(**given, **options)``; an option that it doesn't know, or that we give, is an error.

    Options arrive as the function's annotations say, as far as `convert` knows these. also: keys that stand
    here too and that the caller has read: an error suggests them.
    """
    return function(**given, **checked(function, options, file, where, given=given, also=also))


def checked(
    function: Callable,
    options: Mapping,
    file: str | Path,
    where: str,
    *,
    given: Collection[str] = (),
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """The options as `call_with` would hand them to the function, which is not called; its errors too."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in given and name != "self"]
    for key in options:
        if key not in known:
            raise SagecacheError(
                f"unknown key '{where}.{key}'", file=file, fix=_suggest(key, [*known, *also])
            )
    missing = [
        name for name in known if parameters[name].default is inspect.Parameter.empty and name not in options
    ]
    if missing:
        raise SagecacheError(f"missing key '{where}.{missing[0]}'", file=file, fix="Add it.")
    hints = _hints(function)
    return {
        key: convert(hints[key], value, file, f"{where}.{key}") if _known(hints.get(key)) else value
        for key, value in options.items()
    }


def at_least(name: str, value: float, low: float) -> None:
    """Raise SagecacheError unless value is a finite number >= low; for ``__post_init__`` of settings."""
    if not low <= value < math.inf:
        raise SagecacheError(f"{name} is {value}, it must be at least {low}")


def positive(name: str, value: float) -> None:
    """Raise SagecacheError unless value is a finite number > 0."""
    if not 0 < value < math.inf:
        raise SagecacheError(f"{name} is {value}, it must be positive")


def share(name: str, value: float) -> None:
    """Raise SagecacheError unless value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise SagecacheError(f"{name} is {value}, it must be in [0, 1]")


def _hints(function: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except NameError:  # annotated with what is imported for type checkers alone
        return {}


def _known(annotation: Any) -> bool:
    """Whether `convert` can judge it: plain values, and lists, dicts and options of them."""
    if annotation in (Any, int, float, str, bool, Path, dict) or dataclasses.is_dataclass(annotation):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    inner = [one for one in arguments if one is not type(None)]
    if origin in (typing.Union, types.UnionType):
        return len(inner) == 1 and _known(inner[0])
    if origin is tuple:
        return all(one is ... or _known(one) for one in arguments)
    return origin is typing.Literal or (origin is dict and _known(arguments[1]))


def _suggest(name: object, known) -> str:
    text = nearest(str(name), [str(item) for item in known])
    return text[0].upper() + text[1:] + "."


def _mismatch(expected: str, value: object, file: str | Path, where: str) -> SagecacheError:
    return SagecacheError(f"'{where}' should be {expected}, got {value!r}", file=file)
