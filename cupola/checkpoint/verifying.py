"""Whether a checkpoint is what was written, its manifest included; no torch, so that listing is quick.

The manifest's seal finds any change. One that is older than seals is held against what is known otherwise:
the step against the folder's name, the tokens against the position in the data.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cupola import storage
from cupola.checkpoint.names import checkpoints, step_of
from cupola.errors import CupolaError
from cupola.shape import ABSENT, Shape, fault

Count = Annotated[int, Field(ge=0)]


class Data(Shape):
    """Where in the data's order a checkpoint stands; an order says the rest itself."""

    position: Count
    row_length: Count


class Facts(Shape):
    """What every checkpoint's manifest states; `data` is absent where nothing has been trained on."""

    stage: str
    step: Count
    global_step: Count
    tokens: Count
    seconds: float
    vocabulary: Count
    tokenizer: str
    weights_sha256: str
    data: Data = ABSENT


def read_facts(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; its files are not looked at.

    Raises:
        CupolaError: it is missing, not what was written, or at odds with the folder's name or with itself.
    """
    facts = storage.read_manifest(path)
    wrong = fault(Facts, facts) or _contradiction(facts, step_of(path))
    if wrong:
        raise CupolaError(f"{path / storage.MANIFEST}: is damaged ({wrong})")
    return facts


def _contradiction(facts: dict[str, Any], named: int | None) -> str | None:
    if named is not None and facts["step"] != named:
        return f"it says step {facts['step']}"
    if "data" not in facts:
        return "it has no data" if facts["step"] else None
    position = facts["data"]["position"]
    return None if position == facts["tokens"] else f"tokens {facts['tokens']}, but data.position {position}"


def verify(path: Path, contents: bool = True, only: Collection[str] | None = None) -> dict[str, Any]:
    """`storage.verify` of a checkpoint, its facts included; returns the manifest.

    Raises:
        CupolaError: names the first file that is missing or damaged.
    """
    facts = read_facts(path)
    storage.verify(path, contents, only)
    return facts


def any_verified(folder: Path) -> bool:
    """Whether a checkpoint of a folder verifies in full."""
    for path in reversed(checkpoints(folder)):
        with contextlib.suppress(CupolaError):
            verify(path)
            return True
    return False
