"""Bounds next to fields: the annotations of a dataclass state which values it accepts, and `check` enforces them."""

import collections
import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, Field

from sedjax.core.errors import Path, UserError, printable

STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
SHOWN_CHARACTERS = 80
OUT_OF_BOUNDS = "out_of_bounds"  # error type that an AfterValidator raises for a violated bound
BOUNDS = {OUT_OF_BOUNDS, "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}

Size = Annotated[int, Field(ge=1, le=16_384)]  # width of a layer
SizeOrNone = Annotated[int, Field(ge=0, le=16_384)]
Layers = Annotated[int, Field(ge=0, le=100)]  # every layer adds compile time
Frames = Annotated[int, Field(ge=1, le=1_000_000)]  # 33 hours of 120 ms
FramesOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Masks = Annotated[int, Field(ge=0, le=1_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # JAX ignores higher bits
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


def one_of(*values: float) -> AfterValidator:
    """An annotation that allows only these numbers, which Literal cannot hold."""
    def check_value(value: float) -> float:
        if value not in values:
            raise ValueError(f"must be one of {', '.join(map(str, values))}")
        return value

    return AfterValidator(check_value)


def without_controls(text: str) -> str:
    """Returns the text. Raises ValueError if it has a character that a row of a table cannot hold."""
    if control := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None):
        raise ValueError(f"must not contain tabs, line breaks or other control characters such as {control!r}")
    return text


def _without_zero(text: str) -> str:
    if "\0" in text:
        raise ValueError("must be a path without zero bytes")
    return text


FilePath = Annotated[str, Field(max_length=4096), AfterValidator(_without_zero)]


def check(kind: type, values: Mapping[str, Any], prefix: str = "", without: Iterable[str] = ()) -> dict[str, Any]:
    """Validated values of all fields of the dataclass `kind`, with defaults; lists become tuples, ints may be floats.

    Args:
      kind: a dataclass; its fields may be dataclasses, which are checked in the same way.
      values: values by field name.
      prefix: text before the field names in an error, such as "model.".
      without: fields to leave out.

    Raises:
      UserError: a field is unknown or missing, or its annotation does not allow its value.
    """
    values = dict(values)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type) and isinstance(values.get(field.name), Mapping):
            values[field.name] = field.type(**check(field.type, values[field.name], f"{prefix}{field.name}."))
    form = _form(kind, frozenset(without))
    try:
        checked = form.__pydantic_validator__.validate_python(_tuples(values))
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        typo = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        raise UserError(_sentence(form, typo, prefix)) from error
    return {name: getattr(checked, name) for name in form.model_fields}


def out_of_bounds(kind: type, values: Mapping[str, Any]) -> list[str]:
    """Names of the fields whose values have the right type but violate a bound that `check` enforces."""
    form = _form(kind, frozenset())
    try:
        form.__pydantic_validator__.validate_python(_tuples(dict(values)))
    except pydantic.ValidationError as error:
        return list(dict.fromkeys(problem["loc"][0] for problem in error.errors() if problem["type"] in BOUNDS))
    return []


def unknown(name: Any, known: Collection[str], prefix: str = "") -> str:
    """The end of an error about an unknown name: the closest known name, or all of them."""
    near = difflib.get_close_matches(str(name)[:SHOWN_CHARACTERS], known, n=1)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    return f"; choose from {', '.join(sorted(known))}." if known else "."


def twice(names: Iterable[Any]) -> Any:
    """The first name that occurs more than once, or None."""
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


def shown(value: Any) -> str:
    """A value as shown in an error: printable and not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"
    return printable(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


@functools.cache
def _form(kind: type, without: frozenset[str]) -> type[pydantic.BaseModel]:
    def default(field: dataclasses.Field) -> Any:
        if field.default_factory is not dataclasses.MISSING:
            return Field(default_factory=field.default_factory)
        return ... if field.default is dataclasses.MISSING else field.default

    fields = {field.name: (field.type, default(field)) for field in dataclasses.fields(kind)
              if field.name not in without}
    return pydantic.create_model(kind.__name__, __config__=STRICT, **fields)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _sentence(form: type[pydantic.BaseModel], problem: dict[str, Any], prefix: str) -> str:
    place = printable(prefix + functools.reduce(_join, problem["loc"], "")[:SHOWN_CHARACTERS])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        known = form.model_fields if len(problem["loc"]) == 1 else ()
        return f"Unknown key {place}{unknown(problem['loc'][0], known, prefix)}"
    if problem["type"] == "missing":
        return f"{place} is missing."
    reason = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    for pattern, better in ((r"^[A-Z][a-z]+ should ", "must "), (r" after validation, not \d+$", ""),
                            (r"\d{5,}", lambda match: f"{int(match[0]):,}" if len(match[0]) < 16 else
                             f"{int(match[0]):g}")):
        reason = re.sub(pattern, better, reason)
    return f"{place} {reason}, not {shown(problem['input'])}."


def _join(place: str, part: Any) -> str:
    if part == "[key]":
        return f"{place}, as a key,"
    return f"{place}[{part}]" if isinstance(part, int) else f"{place}.{part}" if place else str(part)


def parse_json(text: str | bytes, form: Any, where: Path) -> Any:
    """The value of JSON `text`, validated against the type `form`, such as dict[str, list[int]].

    Raises UserError that names `where`, and the place in it, if the text is not valid JSON (or nested too deeply) or
    does not match `form`.
    """
    try:
        return pydantic.TypeAdapter(form).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise UserError(f"{printable(where)} is damaged: {problem(error)}.") from error


def problem(error: pydantic.ValidationError) -> str:
    """The first problem that pydantic reports, as part of a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"][:1].lower() + first["msg"][1:]
    return printable(f"{place}: {message}" if place else message).rstrip(".")
