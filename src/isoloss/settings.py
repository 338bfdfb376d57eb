"""Settings whose every bad value is answered with one sentence."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pydantic

from isoloss.errors import InputError, unknown


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable, no unknown keys, one sentence for a bad value."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    if not TYPE_CHECKING:  # type checkers read the fields; at run time the errors are rewritten

        def __init__(self, **values: Any) -> None:
            known = type(self).model_fields
            for key in values:
                if key not in known:
                    raise unknown(f"setting of {type(self).__name__}", key, known)
            try:
                super().__init__(**values)
            except pydantic.ValidationError as error:
                raise InputError(_sentence(type(self).__name__, error)) from None


def _sentence(owner: str, error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not first["loc"]:  # a rule between fields, which names its values itself
        return f"{owner}: {reason}."
    name = ".".join(str(part) for part in first["loc"])
    given = textwrap.shorten(str(first["input"]), 80, placeholder=" ...")
    return f"{name}={given} is not possible for {owner}: it {reason}."
