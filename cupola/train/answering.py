"""A module that answers questions while it is trained: their tokens to sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from cupola.chat.template import ChatTemplate
from cupola.corpus.tokenizer import Tokenizer
from cupola.generate.answering import complete, said_in
from cupola.generate.decode import Completion
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision
from cupola.train.questions import Question, Questions
from cupola.train.rewards import Given


@dataclass(frozen=True)
class Answerer:
    """Who answers.

    Attributes:
        precision: "fp32" (the parameters' dtype) or "bf16" (autocast).
        at_once: questions that are decoded together.
    """

    module: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate
    precision: Precision
    at_once: int = 256

    def sample(
        self, questions: Sequence[Question], max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """An answer to each question, until it ends or `max_tokens` are made; temperature 0: the likeliest.

        Tokens that no text holds are never chosen, save those that end an answer.
        """
        done: list[Completion] = []
        for first in range(0, len(questions), self.at_once):
            prompts = [question.ids.tolist() for question in questions[first : first + self.at_once]]
            done += complete(
                self.module,
                self.tokenizer,
                self.template,
                prompts,
                max_tokens,
                self.precision,
                temperature=temperature,
                seed=seed + first,
            )
        return done

    def given(
        self, source: Questions, question: Question, completion: Completion, place: tuple[int, int]
    ) -> Given:
        """An answer as rewards get it.

        Args:
            place: as of `Given`.
        """
        finished = completion.finish_reason == "stop"
        return Given(source, question, self.text(completion), finished, place, completion.tokens)

    def text(self, completion: Completion) -> str:
        """What an answer says, without the token that ends it."""
        return said_in(completion, self.tokenizer, self.template)
