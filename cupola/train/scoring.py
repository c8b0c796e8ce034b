"""A reward model as a reward: it scores the tokens that were sampled, after the question that they answer."""

from collections.abc import Sequence

import torch

from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.objectives.answer_scores import answer_scores
from cupola.parallel.device import Precision, autocast
from cupola.train.answer_rows import answer_rows, row_of
from cupola.train.rewards import Given


class Scorer:
    """A function for `train.rewards.Rewards`.

    Args:
        module: with the scalar head that a stage of objective reward has trained.
        precision: as the run's.
        delimiter: the token between documents.
        microbatch_tokens: read together; one answer at least.
    """

    def __init__(
        self, module: LanguageModel, precision: Precision, delimiter: int, microbatch_tokens: int
    ) -> None:
        self.module, self.precision = module, precision
        self.delimiter, self.microbatch_tokens = delimiter, microbatch_tokens

    @torch.no_grad()
    def __call__(self, answers: Sequence[Given]) -> list[float]:
        """The score of each answer, read off its last token."""
        said = [(answer.question.ids, answer.tokens) for answer in answers]
        device = next(self.module.parameters()).device
        longest = max(map(row_of, said))
        found = [0.0] * len(answers)
        with in_eval_mode(self.module), autocast(device, self.precision):
            for order, rows in answer_rows(said, {}, longest, self.microbatch_tokens, self.delimiter):
                there = rows.to(device)
                hidden = self.module.hidden(there.tokens, there.documents)
                for index, score in zip(
                    order, answer_scores(self.module, hidden, there).tolist(), strict=True
                ):
                    found[index] = score
        return found
