"""The recipe's JSON schema, by which editors complete and check a recipe while it is written.

It describes a file as it may be written, not the recipe that comes out: `base:` is allowed, any key may be
missing (the base may have it) or null, and shorthands are accepted. So it is looser than loading, and never
stricter; what blocks must agree on only loading knows.
"""

from typing import Any

from pydantic import TypeAdapter

from cupola.recipe.lookup import presets, shipped_recipes
from cupola.recipe.schema import Recipe
from cupola.recipe.strict import Strict

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema, as JSON-able values (draft 2020-12)."""
    whole = TypeAdapter(Recipe).json_schema(mode="validation")
    definitions = whole.pop("$defs")
    for name, block in definitions.items():
        definitions[name] = _shorthand(name, _partial(block))
    model = definitions["Model"]
    preset = {
        "description": "A shipped preset, or a file; the other keys change it.",
        "anyOf": [{"enum": list(presets())}, {"type": "string"}],
    }
    model["properties"] = {"base": preset, **model["properties"]}
    definitions["Model"] = {"anyOf": [model, preset], "description": model["description"]}
    base = {
        "description": "The recipe that this one changes: a file, or the name of a shipped one.",
        "anyOf": [{"enum": [*shipped_recipes(), *presets()]}, {"type": "string"}],
    }
    whole = _partial(whole)
    whole["properties"] = {"base": base, **whole["properties"]}
    return {"$schema": DIALECT, **whole, "title": "A Cupola recipe", "$defs": definitions}


def _partial(block: dict[str, Any]) -> dict[str, Any]:
    """A block of which any key may be missing, or null."""
    block = {key: value for key, value in block.items() if key != "required"}
    block["properties"] = {key: _nullable(value) for key, value in block["properties"].items()}
    return block


def _nullable(value: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        key: value[key] for key in ("description", "default") if key in value and value[key] is not None
    }
    rest = {key: item for key, item in value.items() if key not in (*kept, "title", "default")}
    if "patternProperties" in rest:  # stages and corpora, each of which may be null as well
        named = {
            name: {"anyOf": [item, {"type": "null"}]} for name, item in rest["patternProperties"].items()
        }
        rest |= {"patternProperties": named, "additionalProperties": False}
    choices: list[dict[str, Any]] = rest.get("anyOf", [rest])
    return {"anyOf": [*choices, {"type": "null"}], **kept}


def _shorthand(name: str, block: dict[str, Any]) -> dict[str, Any]:
    """A block, or the one value that it may be written as."""
    kind = next((kind for kind in Strict.__subclasses__() if kind.__name__ == name), None)
    if kind is None or kind.shorthand is None:
        return block
    return {"anyOf": [block, block["properties"][kind.shorthand]], "description": block["description"]}
