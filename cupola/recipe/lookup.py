"""Where recipes and presets are found: a path, a name in ./recipes, or what is shipped.

The shipped recipes are the files of the repository's `recipes/` folder; `shipped` beside this module is a
link to it, which becomes a folder of its own in an installed package. Presets are `model:` blocks.
"""

import os
from pathlib import Path

from cupola.errors import InputError
from cupola.recipe.document import shown
from cupola.recipe.structure import did_you_mean

SHIPPED = Path(__file__).parent / "shipped"
PRESETS = Path(__file__).parent / "presets"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Cupola, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def presets() -> dict[str, Path]:
    """The model presets that come with Cupola, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def summary(path: Path) -> str:
    """The first line of a file's opening comment, save the editors' schema line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((line for line in comments if not line.startswith("yaml-language-server")), "")


def find_recipe(text: str, folder: Path, where: str = "") -> Path:
    """The file that a path or a name means.

    Args:
        text: a path (relative to `folder`), or a name.
        folder: where the search begins.
        where: what precedes an error's text (`FILE:LINE: base: `).

    Raises:
        InputError: nothing of that name, or a folder.
    """
    if not text.strip():
        raise InputError(f"{where}an empty path; name a recipe (there are {', '.join(shipped_recipes())})")
    path = folder / Path(text).expanduser()
    if os.path.isfile(path):  # unlike Path's, False for a name that is too long
        return path
    if os.path.isdir(path):
        raise InputError(f"{where}{text}: is a folder; name a recipe in it")
    names = shipped_recipes()
    if _is_name(text):
        here = {file.stem: file for at in (Path("recipes"), folder) for file in sorted(at.glob("*.yaml"))}
        names = names | here
        if text in names:
            return names[text]
        close = did_you_mean(text, names)
        hint = f"; did you mean {close}?" if close else ""
        there = ", ".join(sorted(names))
        raise InputError(f"{where}{text}: no recipe of that name{hint} (there are {there})")
    if os.path.exists(path):  # a device or a pipe, such as /dev/stdin
        return path
    if path.stem in names:
        raise InputError(
            f"{where}{text}: no such file; the shipped recipe is called by its name, {path.stem}"
        )
    # Without their endings, which all have in common and which would make any two look alike.
    beside = {file.stem: file for file in sorted(path.parent.glob("*.y*ml"))}
    close = did_you_mean(path.stem, beside)
    hint = f"; did you mean {shown(beside[close])}?" if close else ""
    raise InputError(f"{where}{text}: no such file{hint} (shipped recipes: {', '.join(names)})")


def find_preset(text: str, folder: Path, where: str) -> Path:
    """The file of a model preset: a shipped one by name, or a path relative to `folder`.

    Raises:
        InputError: nothing of that name; says the closest.
    """
    known = presets()
    if text in known:
        return known[text]
    path = folder / Path(text).expanduser()
    if os.path.isfile(path):
        return path
    close = did_you_mean(text, known)
    hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
    raise InputError(f"{where}no preset or file {text}; {hint}")


def _is_name(text: str) -> bool:
    return "/" not in text and not text.endswith((".yaml", ".yml"))
