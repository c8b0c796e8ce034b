"""Mathematics only: layers, attention, the stack of blocks, initialisation, Hugging Face's names.

This file imports nothing, so that `cupola.models.table` can be read without torch; `build` is fetched
from `cupola.models.init` when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cupola.models.init import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from cupola.models.init import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
