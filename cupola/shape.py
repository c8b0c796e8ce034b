"""What a JSON object on disk must hold to be used: keys and types, declared as a pydantic model.

That a file is JSON says little: one flipped bit turns a key into another. Keys that a model does not name
are let through, so that an older Cupola reads what a newer one wrote.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

ABSENT: Any = None
"""The default of a key that may be missing. Defaults are not checked; null in the file is still refused."""


class Shape(BaseModel):
    """Keys and types of an object; strict, so that "3" is no number and true no integer."""

    model_config = ConfigDict(strict=True, extra="allow")


def fault(shape: type[Shape], value: Any) -> str | None:
    """What is wrong with a value, in a few words; None if it has the shape."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            return f"it has no {where}"
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        return f"{where}: {message}" if where else message
    return None
