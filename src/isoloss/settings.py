"""Settings whose every bad value is answered with one sentence, and `KEY=VALUE` to change them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic

from isoloss.errors import MOST, InputError, printable, shortened, shown, unknown

IN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
ONLY_IN_PYTHON = {"when"}  # functions: no file keeps them, and no command can give them


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable, no unknown keys, one sentence for a bad value."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    if not TYPE_CHECKING:  # type checkers read the fields; at run time the errors are rewritten

        def __init__(self, *unnamed: Any, **values: Any) -> None:
            known = type(self).model_fields
            if unnamed:
                name, first = type(self).__name__, next(iter(known), "")
                raise InputError(
                    f"{name} takes its settings by name, as in {name}({first and first + '=...'}), "
                    f"got {shown(unnamed[0])}"
                )
            for key in values:
                if key not in known:
                    raise unknown(f"setting of {type(self).__name__}", key, known)
            try:
                super().__init__(**values)
            except pydantic.ValidationError as error:
                raise InputError(_sentence(type(self).__name__, error)) from None


Count = Annotated[int, pydantic.Field(gt=0, le=MOST)]
"""How many of something: a whole number that files and displays hold."""

AnySettings = TypeVar("AnySettings", bound=Settings)


def parse_pairs(pairs: Sequence[str], *kinds: type[Settings]) -> dict[str, str | None]:
    """VALUE by KEY of `--set KEY=VALUE`, each a setting of one of the kinds; `none` is None."""
    known = [key for kind in kinds for key in kind.model_fields if key not in ONLY_IN_PYTHON]
    given: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set must be KEY=VALUE, as in steps=500, got {pair}")
        if key in given:
            raise InputError(f"--set {key} was given twice; give it once")
        if key not in known:
            raise unknown("setting", key, known)
        given[key] = None if value.lower() == "none" else value
    return given


def override(part: AnySettings, given: Mapping[str, str | None]) -> AnySettings:
    """Settings with those of them changed that were given."""
    mine = {key: value for key, value in given.items() if key in type(part).model_fields}
    return type(part)(**{**part.model_dump(), **mine})


def _sentence(owner: str, error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a rule between fields, which names its values itself
        return f"{owner}: {reason}"
    name = ".".join(str(part) for part in first["loc"])
    value = first["input"]
    given = (shortened(printable(value)) or "nothing") if isinstance(value, str) else shown(value)
    if reason.startswith("Input should "):  # what follows a comma says how the value was read
        reason = re.sub(r", (unable|got) .*", "", reason.removeprefix("Input should "))
        for said, meant in IN_WORDS.items():
            reason = reason.replace(said, meant)
        return f"{name} of {owner} must {reason}, got {given}"
    return f"{name} of {owner} cannot be {given}: {reason}"
