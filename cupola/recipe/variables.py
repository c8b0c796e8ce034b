"""The `$` in a recipe's paths: `$NAME` and `${NAME}` are the environment's, `$$` is the character itself.

A loaded recipe holds paths as they are, so a `$` in them is never expanded again; written down, it is `$$`.
"""

import os
import re

Paths = str | list[str] | None

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")


def expand(path: str) -> str:
    """The path with the environment's values put in.

    Raises:
        KeyError: a variable is not set; the key is its name.
    """
    return _VARIABLE.sub(lambda found: found[1] or os.environ[found[2] or found[3]], path)


def escaped(paths: Paths) -> Paths:
    """Paths as they are, in the way in which a recipe writes them."""
    if isinstance(paths, list):
        return [path.replace("$", "$$") for path in paths]
    return paths and paths.replace("$", "$$")


def unescaped(paths: Paths) -> Paths:
    """The reverse of `escaped`."""
    if isinstance(paths, list):
        return [path.replace("$$", "$") for path in paths]
    return paths and paths.replace("$$", "$")
