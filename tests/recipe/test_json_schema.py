"""The JSON schema accepts what loading accepts, and marks what an editor can know to be wrong."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cupola.recipe.document import Node, read_document
from cupola.recipe.json_schema import schema
from cupola.recipe.loading import dump, load
from cupola.recipe.lookup import shipped_recipes

ROOT = Path(__file__).parents[2]
CHECK = jsonschema.Draft202012Validator(schema())


def written(text: str, folder: Path) -> Any:
    """A document as a YAML 1.2 editor sees it, nulls included."""
    path = folder / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return as_written(read_document(path))


def as_written(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: as_written(value) for key, value in node.value.items()}
    return [as_written(item) for item in node.value] if isinstance(node.value, list) else node.value


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", shipped_recipes())
def test_accepts_the_shipped_recipes_as_written_and_as_resolved(name):
    CHECK.validate(as_written(read_document(shipped_recipes()[name])))
    CHECK.validate(dump(load(name)))


@pytest.mark.parametrize(
    "text",
    [
        "base: quickstart",
        "base: ../other.yaml\nstages: {pretrain: null, more: {learning_rate: 3e-4}}",
        "base: quickstart\ncorpora: {python: null}\nmodel: llama3-8b",
        "model: {base: gpt2-small, layers: 3}",
        "stages: {a: {optimizer: muon, learning_rate: {peak: 1e-3, warmup: 10 steps}, tokens: 5}}",
        "stages: {a: {data: mine, tokens: 2 epochs, batch_tokens: {0%: 1, 5%: 4k tokens}}}",
        "stages: {a: {data: {0%: {x: 1}, 5%: {x: 1, y: 2.5}}, optimizer: {kind: null}}}",
        "tokenizer: {train_on: {x: 1}}\nscale: {data: 1, microbatch_tokens: auto}",
        "corpora: {a: {files: [x, y], fallback: {python: docstrings, fallback: {npm: x}}}}",
        "compile: off",
    ],
)
def test_accepts_every_way_of_writing(text, tmp_path):
    CHECK.validate(written(text, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "nmae: x",
        "stages: {a: {sequense_length: 4}}",
        "stages: {a: {learning_rate: -1}}",
        "stages: {a: {learning_rate: {peak: 1, decay: cosin}}}",
        "stages: {a: {optimizer: sgd}}",
        "stages: {a: {tokens: soon}}",
        "stages: [a]",
        "stages: {a b: {tokens: 5}}",
        "model: {layers: 0}",
        "model: {layers: 1.5}",
        "model: {heads: many}",
        "scale: {data: many}",
        "corpora: {a: {pithon: code}}",
        "corpora: {a: {fallback: {pithon: code}}}",
        "precision: fp8",
        "name: a b",
    ],
)
def test_marks_what_is_wrong(text, tmp_path):
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(written(text, tmp_path))


def test_every_key_has_a_sentence_for_the_editor():
    silent = []
    for name, block in [("recipe", schema()), *schema()["$defs"].items()]:
        inner = block if "properties" in block else block["anyOf"][0]
        silent += [
            f"{name}.{key}" for key, value in inner["properties"].items() if "description" not in value
        ]
    assert silent == []


def test_the_copy_in_docs_is_current():
    """Renew it with `cupola recipe schema --out docs/recipe.schema.json`."""
    import json

    assert json.loads((ROOT / "docs/recipe.schema.json").read_text(encoding="utf-8")) == schema()
