"""Scaling laws: what loss a model of N parameters reaches on D tokens, and which N and D are the best choice.

Training is taken as 6 N D FLOPs and a token of inference as 2 N, as the laws were fitted. Losses are nats a
token of the text and tokenizer that a law was fitted on: differences and optima carry over to other data,
roughly; values don't. `plan.fitting` fits a law on one's own runs.

Sources: Hoffmann et al. 2022 (arXiv:2203.15556, "Chinchilla"), Besiroglu et al. 2024 (arXiv:2404.10102, the
third approach fitted again and corrected), Sardana et al. 2023 (arXiv:2401.00448, inference counted),
Muennighoff et al. 2023 (arXiv:2305.16264, repeated data).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cupola.errors import InputError

SMALLEST = 1e4
"""Parameters of the smallest model that is considered."""
LARGEST = 1e16
"""And of the largest."""


@dataclass(frozen=True)
class Choice:
    """A model and how long it is trained.

    Attributes:
        parameters, tokens: N and D.
        flops: of training, 6 N D.
        loss: nats a token; None of a law that doesn't say.
    """

    parameters: float
    tokens: float
    loss: float | None = None

    @property
    def flops(self) -> float:
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True)
class Frontier:
    """Optimal sizes as a power of the compute, and nothing about losses (Hoffmann's approaches 1 and 2).

    Attributes:
        exponent: N grows with compute to this power, D to one less it.
        parameters, flops: a point that it goes through.
    """

    exponent: float
    parameters: float
    flops: float
    source: str

    def optimum(self, flops: float) -> Choice:
        """The best N and D for so much compute."""
        parameters = self.parameters * (_positive("flops", flops) / self.flops) ** self.exponent
        return Choice(parameters, flops / (6.0 * parameters))

    def optimum_of(self, parameters: float) -> Choice:
        """The compute for which so many parameters are best, and its D."""
        ratio = _positive("parameters", parameters) / self.parameters
        return Choice(parameters, self.flops * ratio ** (1.0 / self.exponent) / (6.0 * parameters))

    @classmethod
    def through(cls, choices: Sequence[Choice], source: str) -> "Frontier":
        """The power law nearest to some optimal choices: least squares of log N over log compute."""
        sizes = [math.log(choice.parameters) for choice in choices]
        budgets = [math.log(choice.flops) for choice in choices]
        if len(set(budgets)) < 2:
            raise InputError("a power law needs two optima with different compute")
        size, budget = sum(sizes) / len(sizes), sum(budgets) / len(budgets)
        slope = sum((x - budget) * (y - size) for x, y in zip(budgets, sizes, strict=True))
        slope /= sum((x - budget) ** 2 for x in budgets)
        return cls(slope, math.exp(size), math.exp(budget), source)


@dataclass(frozen=True)
class Law:
    """L(N, D) = floor + a / N^alpha + b / D^beta (Hoffmann's approach 3)."""

    floor: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Of a model of so many parameters after so many fresh tokens; nats a token."""
        n, d = _positive("parameters", parameters), _positive("tokens", tokens)
        return self.floor + self.a * n**-self.alpha + self.b * d**-self.beta

    @property
    def exponent(self) -> float:
        """The optimal N grows with compute to this power."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> Choice:
        """The N and D of the lowest loss for so much compute (Hoffmann et al., equation 4)."""
        base = (self.alpha * self.a / (self.beta * self.b)) ** (1.0 / (self.alpha + self.beta))
        parameters = base * (_positive("flops", flops) / 6.0) ** self.exponent
        tokens = flops / (6.0 * parameters)
        return Choice(parameters, tokens, self.loss(parameters, tokens))

    def optimum_of(self, parameters: float) -> Choice:
        """The D at which so many parameters are the best choice for their compute."""
        n = _positive("parameters", parameters)
        ratio = self.beta * self.b / (self.alpha * self.a)
        tokens = float((ratio * n**self.alpha) ** (1.0 / self.beta))
        return Choice(n, tokens, self.loss(n, tokens))

    def best_parameters(self, tokens: float) -> float:
        """The inverse: the N for which so many tokens are the best choice."""
        ratio = self.alpha * self.a / (self.beta * self.b)
        return float((ratio * _positive("tokens", tokens) ** self.beta) ** (1.0 / self.alpha))

    def tokens_to(self, loss: float, parameters: float) -> float:
        """Fresh tokens until a model of so many parameters reaches a loss; infinite where it never does."""
        left = loss - self.floor - self.a * _positive("parameters", parameters) ** -self.alpha
        return (self.b / left) ** (1.0 / self.beta) if left > 0 else math.inf

    def cheapest(self, loss: float, inference_tokens: float = 0.0) -> Choice:
        """The N and D that reach a loss with the fewest FLOPs of training and inference, 6 N D + 2 N I.

        Without inference it is the compute-optimal choice; the more is read and written with the model, the
        smaller and the longer trained it is (Sardana et al. 2023, equation 3).

        Args:
            inference_tokens: I, prompts and answers of the model's whole life.

        Raises:
            InputError: no model reaches that loss.
        """
        if not loss > self.floor:
            raise InputError(f"a loss of {loss:g} is out of reach: the law's floor is {self.floor:g}")
        if inference_tokens < 0:
            raise InputError(f"inference_tokens is {inference_tokens:g}; a number from 0 up is expected")

        def flops(parameters: float) -> float:
            return parameters * (6.0 * self.tokens_to(loss, parameters) + 2.0 * inference_tokens)

        least = (self.a / (loss - self.floor)) ** (1.0 / self.alpha)
        parameters = _lowest(flops, least * (1 + 1e-9), max(least * 1e6, 1.0))
        return Choice(parameters, self.tokens_to(loss, parameters), loss)


@dataclass(frozen=True)
class Repetition:
    """What repeated tokens and excess parameters are worth (Muennighoff et al. 2023, equations 5 and 6).

    The first pass counts in full; of further ones, each is worth less, and all together at most
    `tokens_decay` times the first. Parameters beyond those that the unique tokens would be the best choice
    for are worth less in the same way. Worse than no gain (a loss that rises again) is not described.
    """

    law: Law
    tokens_decay: float
    parameters_decay: float

    def tokens(self, tokens: float, unique: float) -> float:
        """Fresh tokens that are worth as much as `tokens`, of which `unique` are different ones."""
        return _worth(_positive("tokens", tokens), _positive("unique tokens", unique), self.tokens_decay)

    def parameters(self, parameters: float, unique: float) -> float:
        """Parameters that are worth as much, with so few unique tokens."""
        best = self.law.best_parameters(unique)
        return _worth(_positive("parameters", parameters), best, self.parameters_decay)

    def loss(self, parameters: float, tokens: float, unique: float) -> float:
        """Of a model of so many parameters after so many tokens, of which `unique` are different ones."""
        unique = min(unique, tokens)
        return self.law.loss(self.parameters(parameters, unique), self.tokens(tokens, unique))

    def optimum(self, flops: float, unique: float) -> Choice:
        """The N and D of the lowest loss for so much compute, where no more than `unique` tokens are to be
        had."""
        _positive("flops", flops)

        def loss(parameters: float) -> float:
            return self.loss(parameters, flops / (6.0 * parameters), unique)

        parameters = _lowest(loss, SMALLEST, LARGEST)
        return Choice(parameters, flops / (6.0 * parameters), loss(parameters))


def _worth(amount: float, full: float, decay: float) -> float:
    """The part up to `full` counts in full, what is beyond it ever less."""
    if amount <= full:
        return amount
    return full * (1.0 + decay * -math.expm1(-(amount / full - 1.0) / decay))


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} is {value:g}; a number above 0 is expected")
    return value


def _lowest(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest: a golden-section search in the logarithm."""
    shrink = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = math.log(low), math.log(high)
    inner, outer = right - shrink * (right - left), left + shrink * (right - left)
    at_inner, at_outer = cost(math.exp(inner)), cost(math.exp(outer))
    while right - left > 1e-9:
        # Both infinite: no model that small reaches the loss, so the valley is above.
        if at_inner <= at_outer and math.isfinite(at_inner):
            right, outer, at_outer = outer, inner, at_inner
            inner = right - shrink * (right - left)
            at_inner = cost(math.exp(inner))
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + shrink * (right - left)
            at_outer = cost(math.exp(outer))
    return math.exp((left + right) / 2.0)


CHINCHILLA_1 = Frontier.through(
    [
        Choice(size, budget / (6 * size))
        for size, budget in (
            (0.4e9, 1.92e19),
            (10e9, 1.23e22),
            (67e9, 5.76e23),
            (280e9, 9.90e24),
            (1000e9, 1.27e26),
        )
    ],
    "Hoffmann et al. 2022, approach 1, from rows of table 3",
)
"""The paper prints the exponent, 0.50 (0.488 to 0.502), and no constant."""
CHINCHILLA_2 = Frontier.through(
    [
        Choice(size, budget / (6 * size))
        for size, budget in ((0.4e9, 1.84e19), (10e9, 1.32e22), (67e9, 6.88e23), (1000e9, 1.59e26))
    ],
    "Hoffmann et al. 2022, approach 2, from rows of table A3",
)
"""The paper prints the exponent, 0.49 (0.462 to 0.534), and no constant."""
CHINCHILLA_3 = Law(
    1.6934, 406.4, 410.7, 0.3392, 0.2849, "Hoffmann et al. 2022, approach 3 (section D.3, in full digits)"
)
"""As published. Besiroglu et al. show that the fit stopped early: the optimum is some 60 tokens a parameter
at the compute of Chinchilla itself, which was trained on 20 because of the other two approaches."""
CORRECTED = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, equation 4")
"""Agrees with approaches 1 and 2: about 20 tokens a parameter."""
REPEATED = Repetition(
    Law(
        math.exp(0.6254804),
        math.exp(6.255414),
        math.exp(7.3049974),
        0.3526596,
        0.3526596,
        "Muennighoff et al. 2023, appendix A (on C4)",
    ),
    tokens_decay=15.387756,
    parameters_decay=5.309743,
)
"""Fitted on models of 7M to 9B parameters and up to 500 epochs, regularised with dropout."""
