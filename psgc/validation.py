"""Checks YAML files against pydantic models: the parts of the models, and errors of one line.

An error names the place and the dotted key, and says what is wrong and what would be right.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from psgc.disk import expanded
from psgc.errors import UserError
from psgc.yaml_source import Key, YamlSource, dotted, shown


def refuse(text: str, *keys: str) -> PydanticCustomError:
    """An error at `keys[0]` of the section that raises it, or at the first of `keys` that --set has written."""
    return PydanticCustomError("psgc", "{text}", {"text": text, "keys": keys})


def expect(text: str, union: bool = False) -> WrapValidator:
    """Replaces pydantic's message about a wrong value by `expected <text>, got <value>`.

    union: whether several plain types are allowed; otherwise an error inside the value keeps its own message
    """

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] and not union:
                raise
            limit = ""
            if first["type"] == "less_than_equal":
                limit = f" and <= {first['ctx']['le']}"
            elif first["type"] == "greater_than_equal" and value > 0 and "> 0" in text:
                limit = f" and >= {first['ctx']['ge']}"
            raise refuse(f"expected {text}{limit}, got {shown(value)}") from None

    return WrapValidator(check)


def either(names: Iterable[str], word: str = "or") -> str:
    """The names as text, "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def one_of(names: Collection[str]) -> BeforeValidator:
    """Refuses a value that is not among `names`, such as the keys of a registry."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise refuse(f"expected {either(names)}, got {shown(value)}")
        return value

    return BeforeValidator(check)


def by(model_of: Callable[[Any], type[BaseModel]]) -> BeforeValidator:
    """Reads a mapping as the model that `model_of` chooses. None stays."""

    def check(value: Any, info: ValidationInfo) -> Any:
        is_read = value is None or isinstance(value, BaseModel)
        return value if is_read else model_of(value).model_validate(value, context=info.context)

    return BeforeValidator(check)


def by_kind(models: Mapping[str, type[BaseModel]]) -> BeforeValidator:
    """Reads a mapping as one of the models, by its key `kind`."""
    kinds = either(models)

    def model_of(value: Any) -> type[BaseModel]:
        if not isinstance(value, dict):
            raise refuse(f"expected a mapping with kind: {kinds}, got {shown(value)}")
        if "kind" not in value:
            raise refuse(f"missing, expected {kinds}", "kind")
        if not isinstance(value["kind"], str) or value["kind"] not in models:
            raise refuse(f"expected {kinds}, got {shown(value['kind'])}", "kind")
        return models[value["kind"]]

    return by(model_of)


def _one_line(text: str) -> str:
    if len(text.splitlines()) != 1 or "\0" in text or not text.encode():
        raise ValueError("not one line of text")
    return text


def _expanded(text: str, info: ValidationInfo) -> str:
    """Expands variables in a path from a user; see `validated`."""
    try:
        return _one_line(expanded(text)) if (info.context or {}).get("by_hand") else text
    except ValueError as error:  # which a UserError is
        raise refuse(str(error)) from None


LARGEST = 2**31 - 1
LEAST, MOST = 1e-50, 1e50  # so that squares and quotients are finite
WholeNumber = Annotated[int, Field(ge=1, le=LARGEST)]
PositiveNumber = Annotated[float, Field(ge=LEAST, le=MOST, allow_inf_nan=False)]
Count = Annotated[WholeNumber, expect("a whole number >= 1")]
Natural = Annotated[int, Field(ge=0, le=LARGEST), expect("a whole number >= 0")]
Positive = Annotated[PositiveNumber, expect("a number > 0")]
RelativeError = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), expect("a number >= 0")]
NotNegative = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False), expect("a number >= 0")]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), expect("a number >= 0 and < 1")]
Flag = Annotated[bool, expect("true or false")]
PathText = Annotated[str, AfterValidator(_one_line), expect("a path"), AfterValidator(_expanded)]


def key(default: Any, description: str) -> Any:
    """A key that may be left out."""
    return Field(default=default, description=description)


@dataclass(frozen=True)
class UsedBy:
    """Marks a key that only some values of `kind` use."""

    kinds: Collection[str]


class Section(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    unused: ClassVar[Mapping[str, str]] = {}  # keys that only other sections of this kind have, and why

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, data: Any) -> Any:
        if isinstance(data, BaseModel):
            return data
        names = [name for name in cls.model_fields if name not in cls.unused]
        keys = ", ".join(names)
        if not isinstance(data, dict):
            raise refuse(f"expected a mapping with the keys {keys}, got {shown(data)}")
        for key in data:
            if key in cls.unused:
                raise refuse(cls.unused[key], key)
            if key not in names and cls.model_config.get("extra") != "allow":
                near = get_close_matches(key, names, n=1) or [f"{name}.{key}" for name in names if cls._has(name, key)]
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {keys}"
                raise refuse(f"unknown key, {hint}", key)
        for key, field in cls.model_fields.items():
            if not field.is_required():
                continue
            expected = field.description or ""
            if key not in data:
                raise refuse(f"missing, expected {expected or either(get_args(field.annotation))}", key)
            if expected.startswith("a mapping, ") and not isinstance(data[key], dict | BaseModel):
                raise refuse(f"expected {expected}, got {shown(data[key])}", key)
        return data

    @classmethod
    def _has(cls, name: str, key: str) -> bool:
        """Whether the section in the field `name`, or one of the sections that it may be, has this key."""
        kind = cls.model_fields[name].annotation
        return any(key in getattr(of, "model_fields", ()) for of in (kind, *get_args(kind)))

    @model_validator(mode="after")
    def _used_keys(self) -> Self:
        for key, field in type(self).model_fields.items():
            for used_by in field.metadata:
                if isinstance(used_by, UsedBy) and (kind := vars(self)["kind"]) not in used_by.kinds:
                    self._refuse_unused(key, f"kind {kind}")
        return self

    def _refuse_unused(self, key: str, owner: str) -> None:
        """Refuses a value that has no effect. Defaults pass, since config.yaml contains all keys."""
        if getattr(self, key) != type(self).model_fields[key].default:
            raise refuse(f"{owner} does not use it", key)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], source: YamlSource, by_hand: bool = True) -> Model:
    """The content of `source` as a `model`. Raises UserError for the first error.

    by_hand: whether a user wrote it; then `~` and variables in paths are expanded
    """
    if source.tree is None:
        keys = ", ".join(model.model_fields)
        raise UserError(f"{source.name}: empty, expected a mapping with the keys {keys}")
    try:
        return model.model_validate(source.tree, context={"by_hand": by_hand})
    except ValidationError as error:
        raise _first(error, source) from None


def checked(model: type[Model], values: Mapping[str, Any], where: str, names: Mapping[str, str]) -> Model:
    """A `model` of these values, the arguments of the function `where`. Raises UserError for the first error.

    names: dotted key -> argument, where the argument is not the last part of the key
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [*(part for part in first["loc"] if isinstance(part, str)), *first.get("ctx", {}).get("keys", ())[:1]]
        text = _text(first)
        for yaml, python in (("true or false", "True or False"), ("chunk or nothing", '"chunk" or None')):
            text = text.replace(f"expected {yaml}", f"expected {python}")
        raise UserError(f"{where}: {names.get('.'.join(keys), (keys or [''])[-1])}: {text}") from None


def _first(error: ValidationError, source: YamlSource) -> UserError:
    """The first of pydantic's errors, with the place where its key (or the nearest parent) was written."""
    first = error.errors(include_url=False)[0]
    key: Key = tuple(str(name) for name in first["loc"] if name != "[key]")
    context = first.get("ctx", {})
    below = [(*key, name) for name in context.get("keys", ())]
    if below:  # blame the command line and not the file
        key = next((k for k in below if source.place(k).startswith("--set ")), below[0])
    return wrong(source, key, _text(first))


def wrong(source: YamlSource, key: Key, text: str) -> UserError:
    """The error that `text` is wrong with a key, with the place where the key was written."""
    place, name = source.place(key), dotted(key)
    said = not key or place.startswith(f"--set {name}=")
    return UserError(f"{place}: {text}" if said else f"{place}: {name}: {text}")


def _text(error: Any) -> str:
    if error["type"] == "psgc":
        return str(error["ctx"]["text"])
    if error["type"] == "literal_error":
        return f"expected {error['ctx']['expected'].replace(chr(39), '')}, got {shown(error['input'])}"
    return str(error["msg"])
