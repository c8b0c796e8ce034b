"""What the scalar head says: of whole answers, for a reward model; before each token of one, for a critic."""

from typing import cast

from torch import Tensor, nn

from cupola.data.batch import Answers, Microbatch
from cupola.models.stack import LanguageModel


def answer_scores(module: nn.Module, hidden: Tensor, microbatch: Microbatch) -> Tensor:
    """The score of each sequence, read off its last learnt token: an answer's stop token, if it has ended.

    Args:
        hidden: (B, T, width), what the module makes of the microbatch.
        microbatch: with answers, a delimiter after each of them, so that its last token is read as well.

    Returns:
        (sequences,) of the parameters' dtype, in the order of their numbers.
    """
    answers = cast(Answers, microbatch.answers)
    ends = answers.places.new_zeros(answers.count)
    ends = ends.scatter_reduce(0, answers.sequences, answers.places, "amax") + 1
    return cast(LanguageModel, module).scores(hidden.flatten(0, 1)[ends])


def token_values(module: nn.Module, hidden: Tensor, microbatch: Microbatch) -> Tensor:
    """The critic's estimate before every learnt token, of what is still to come.

    Args:
        hidden: (B, T, width), what the module makes of the microbatch.
        microbatch: with answers.

    Returns:
        (N,) of the parameters' dtype, in the order of `Answers.places`.
    """
    places = cast(Answers, microbatch.answers).places
    return cast(LanguageModel, module).scores(hidden.flatten(0, 1)[places])
