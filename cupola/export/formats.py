"""Which home format a model has, and which a file.

Another format is a class with the protocol `format.Format` and an entry in `FORMATS`.
"""

import re

from cupola.errors import InputError
from cupola.export import mamba_ssm
from cupola.export.config import Config, refuse_foreign, refused_settings
from cupola.export.format import Format
from cupola.export.gpt2 import GPT2
from cupola.export.granite import Granite
from cupola.export.llama import FORMATS as LLAMAS
from cupola.export.mamba import MambaFormat
from cupola.export.mamba2 import Mamba2Format
from cupola.export.pairs import Shapes, our_shapes, their_shapes
from cupola.recipe.document import dotted
from cupola.recipe.model import Model
from cupola.recipe.model_checks import model_problems

FORMATS: tuple[Format, ...] = (*LLAMAS, GPT2(), Mamba2Format(), MambaFormat(), Granite())
"""Where several could hold a model, the first does."""
HEAD = "lm_head.weight"


def of_model(model: Model) -> Format:
    """The format that computes a model.

    Raises:
        InputError: none of Hugging Face's architectures does; names what the nearest would need.
    """
    objections = [(format_, format_.objections(model)) for format_ in FORMATS]
    nearest, wanted = min(objections, key=lambda found: _distance(found[1]))
    if wanted:
        raise InputError(
            f"model: Hugging Face has no such architecture; {nearest.model_type} would need"
            f" {', '.join(wanted)}"
        )
    return nearest


def name_for(model: Model) -> str | None:
    """The `model_type` of the format that computes a model, or None."""
    return next((format_.model_type for format_ in FORMATS if not format_.objections(model)), None)


def _distance(objections: list[str]) -> int:
    """Another family is furthest away, then other blocks, then other settings of the same."""
    far = {"family": 100, "pattern": 10, "experts": 10}
    return sum(far.get(objection.partition(": ")[0], 1) for objection in objections)


def of_config(config: Config) -> Format:
    """The format that a `config.json` names.

    Mistral with a kind for each layer is Ministral, as to transformers' auto classes.

    Raises:
        InputError: Cupola does not know it.
    """
    kind = config.get("model_type")
    if kind == "mistral" and "layer_types" in config.fields:
        kind = "ministral"
    for format_ in FORMATS:
        if format_.model_type == kind:
            return format_
    known = ", ".join(sorted(format_.model_type for format_ in FORMATS))
    raise InputError(f"{config.origin}: model_type: {kind!r} is not computed by Cupola; it imports {known}")


def read_model(config: Config) -> tuple[Format, Model]:
    """The format and the settings that a `config.json` says.

    Raises:
        InputError: names the field that is missing or that Cupola does not compute.
    """
    if mamba_ssm.KEY in config.fields and config.get("model_type") is None:
        config = mamba_ssm.translated(config)
    format_ = of_config(config)
    refuse_foreign(config)
    with refused_settings(config.origin):
        model = format_.model(config)
    for problem in model_problems(model):
        raise InputError(f"{config.origin}: {dotted(problem.path)}: {problem.message}")
    return format_, model


def file_shapes(format_: Format, model: Model, vocabulary: int) -> Shapes:
    """The names and shapes of a file's tensors."""
    return their_shapes(format_.pairs(model), our_shapes(model, vocabulary))


def own_name(format_: Format, name: str, expected: Shapes) -> str | None:
    """The name under which a file's tensor is expected; None for a table that is computed.

    Files of the bare model leave out the prefix, as GPT-2's first ones do.
    """
    if name not in expected and re.fullmatch(format_.ignored, name):
        return None
    name = format_.aliases.get(name, name)
    longer = format_.prefix + name
    return longer if name not in expected and longer in expected else name
