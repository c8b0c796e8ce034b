"""What a home format of Hugging Face's offers, and what all of them say alike."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from cupola.export.config import Config
from cupola.export.pairs import Pair
from cupola.recipe.model import Model

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
"""A parameter of ours within a block: its number, and the name in it."""
UNUSED = {"family", "layers", "width", "vocabulary", "init_std", "norm_epsilon", "tied", "pattern"}
"""Settings that every format holds, or that are of no consequence for the function."""


class Format(Protocol):
    """One architecture of Hugging Face's, both ways."""

    @property
    def model_type(self) -> str:
        """The name in `config.json`."""

    @property
    def prefix(self) -> str:
        """What the names of all tensors but the head's begin with; a file may leave it out."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names that files give to tensors, and the usual ones."""

    @property
    def states_context(self) -> bool:
        """Whether its settings have a `max_position_embeddings` that the function does not depend on."""

    @property
    def ignored(self) -> str:
        """A regular expression of names that files have beside parameters: tables that are computed."""

    def objections(self, model: Model) -> list[str]:
        """The settings that a model would need to be of this architecture (`tied: true`); none: it is."""

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """The fields of `config.json` for a model to which there is no objection.

        Args:
            vocabulary: rows of embedding and head.
        """

    def model(self, config: Config) -> Model:
        """The settings of a file, its vocabulary stated.

        Raises:
            InputError: names the field that is missing, of the wrong kind, or not computed by Cupola.
        """

    def pairs(self, model: Model) -> Iterator[Pair]:
        """Every tensor of a file, with those of ours that it holds."""


def common(model: Model, vocabulary: int, model_type: str, architecture: str) -> dict[str, Any]:
    """The fields that every `config.json` has; both spellings of the weights' type (transformers 4 and 5) are
    written with them by `folder`."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": vocabulary,
        "tie_word_embeddings": model.tied,
        "initializer_range": model.init_std,
    }


def differences(model: Model, held: Collection[str], wanted: dict[str, Any]) -> list[str]:
    """The settings that stand in the way of an architecture.

    Args:
        held: settings that it holds, whatever their value.
        wanted: the values of settings that it needs; all others must be as by default, so that a setting of
            which a format knows nothing is never dropped silently.
    """
    found = []
    for name, field in Model.model_fields.items():
        if name in UNUSED or name in held:
            continue
        value = wanted.get(name, field.default)
        if getattr(model, name) != value:
            found.append(f"{name}: {shown(value)}")
    return found


def shown(value: Any) -> str:
    """A setting's value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def mixers(model: Model, allowed: Collection[str]) -> list[str]:
    """An objection where a model has other blocks than an architecture."""
    if set(model.mixers()) <= set(allowed):
        return []
    return [f"pattern: of {' and '.join(allowed)} alone"]
