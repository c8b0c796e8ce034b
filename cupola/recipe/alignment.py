"""What a stage may learn, and the settings of the objectives that learn from preferences."""

import re
from typing import ClassVar, Literal

from pydantic import Field

from cupola.recipe.corpora import Format
from cupola.recipe.kinds import Name
from cupola.recipe.strict import Strict

Objective = Literal["next_token", "sft", "dpo", "kto", "reward", "grpo", "ppo"]
READS: dict[Objective, Format] = {
    "next_token": "text",
    "sft": "chat",
    "dpo": "preference",
    "kto": "rated",
    "reward": "preference",
    "grpo": "chat",
    "ppo": "chat",
}
"""Objective -> what the documents of its sources are."""
ALSO_READ: dict[Format, Format] = {"rated": "preference"}
"""Format -> another whose documents are read as of it: a pair is two rated answers."""
SCORES: frozenset[Objective] = frozenset({"reward", "ppo"})
"""Those whose model has a scalar head."""
SAMPLES: frozenset[Objective] = frozenset({"grpo", "ppo"})
"""Those that learn from answers of their own to the questions in them."""


STAGE = "stage:"
"""How the name of a reward begins that a reward model gives."""
FORMAT, LENGTH = "format:", "length:"
"""The same of one that asks for a form, a regular expression, or for brevity, a number of tokens."""
BUILT_IN = ("check", "finished", "random")
"""Names of rewards that take no argument."""


def reward_fault(name: str) -> str | None:
    """Why a reward can't have the name; None: it can. Whether a file is there shows when it is read."""
    if name in BUILT_IN or name.startswith(STAGE):
        return None
    if name.startswith(FORMAT):
        try:
            re.compile(name.removeprefix(FORMAT))
        except re.error as error:
            return f"{name} is no regular expression ({error})"
        return None
    if name.startswith(LENGTH):
        number = name.removeprefix(LENGTH)
        if not (number.isascii() and number.isdigit() and int(number)):
            return f"{name} names no number of tokens; write {LENGTH}200"
        return None
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        known = ", ".join((*BUILT_IN, f"{FORMAT}REGEX", f"{LENGTH}TOKENS", f"{STAGE}NAME"))
        return f"{name!r} is none of {known}, nor path/to/file.py:function"
    return None


class Preference(Strict):
    """How a stage of objective dpo learns from pairs; settings have the names that they have in TRL."""

    shorthand: ClassVar[str | None] = "loss"
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "simpo", "orpo"] = "sigmoid"
    """sigmoid: DPO (Rafailov et al. 2023), or cDPO with label_smoothing. robust (Chowdhury et al. 2024). ipo:
    by length, as TRL (Azar et al. 2023). hinge: SLiC (Zhao et al. 2023). sigmoid_norm: DPO of means by token.
    Without a reference: simpo (Meng et al. 2024), orpo (Hong et al. 2024)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength: of the pull to the reference, or, without one, of the preference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round (sigmoid, robust, sigmoid_norm, simpo)."""
    simpo_gamma: float = Field(default=0.5, ge=0)
    """Margin that simpo asks for."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean loss by token of the chosen answers, added to any of them (RPO)."""

    only: ClassVar[dict[str, tuple[str, ...]]] = {
        "label_smoothing": ("sigmoid", "robust", "sigmoid_norm", "simpo"),
        "simpo_gamma": ("simpo",),
    }
    """The losses on which a setting has an effect, of those that don't have one on all."""

    @property
    def needs_reference(self) -> bool:
        """Is the policy compared with the weights that the stage began from?"""
        return self.loss not in ("simpo", "orpo")


class Kto(Strict):
    """How a stage of objective kto learns from answers that are wanted and others that are not (Ethayarajh et
    al. 2024); settings have the names that they have in TRL."""

    shorthand: ClassVar[str | None] = "beta"
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Of the loss of an answer that is wanted; its ratio to the other weight, times that of the numbers of
    answers, should lie between 1 and 4/3 (the paper's eq. 8)."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Of the loss of an answer that is not."""


class RewardModel(Strict):
    """How a stage of objective reward learns from pairs; settings have the names that they have in TRL."""

    margin: float = Field(default=0.0, ge=0)
    """By how much the reward of a chosen answer should exceed its rival's (Touvron et al. 2023)."""
    center_rewards_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the squared sum of a pair's rewards, which holds them near 0 (Eisenstein et al. 2023)."""


class Policy(Strict):
    """How a stage of objective grpo or ppo learns from rewards for its own answers; named as in TRL."""

    shorthand: ClassVar[str | None] = "loss"
    loss: Literal["grpo", "dapo", "dr_grpo", "cispo"] = "dapo"
    """grpo: mean of answers' means by token (Shao et al. 2024). dapo: mean over all tokens (Yu et al. 2025).
    dr_grpo: sum by a constant length (Liu et al. 2025). cispo: clipped weights (MiniMax 2025)."""
    prompts: int = Field(default=16, ge=1)
    """Questions that are answered at a time."""
    completions: int = Field(default=8, ge=1)
    """Answers to each; for grpo, which compares them, at least 2."""
    updates: int = Field(default=1, ge=1)
    """Steps that are made from them, each from its share of the questions; with more than one the policy has
    moved since it answered, and the ratio is clipped."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens of an answer, at most."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the probabilities that are learnt."""
    rewards: dict[str, float] = Field(default={"check": 1.0}, min_length=1)
    """Rewards and weights: `check` (is the answer right, as its generator says, or the same as the corpus's),
    `finished` (it ended by itself), `format:REGEX` (the whole answer matches), `length:200` (from 1 down to 0
    at so many tokens), `random` (a control), `stage:NAME` (what the reward model of an earlier stage finds),
    or `path/to/file.py:function`."""
    advantages: Literal["group", "batch", "none", "leave_one_out"] = "group"
    """The reward over the mean of its group, divided by the deviation of group, batch or none (Dr. GRPO), or
    over the mean of the others (RLOO, Ahmadian et al. 2024)."""
    epsilon: float = Field(default=0.2, gt=0)
    """By how much the ratio of probabilities may fall."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """By how much it may rise, if it is not the same (DAPO's clip-higher); cispo's largest weight."""
    delta: float | None = Field(default=None, gt=1)
    """Largest ratio where the advantage is negative (dual clip, Ye et al. 2020)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """`sequence` is GSPO (Zheng et al. 2025)."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the weights that the stage began with."""
    kl_estimator: Literal["k2", "k3", "k3_ratio"] = "k3_ratio"
    """Of the KL (Schulman 2020); k3_ratio has the KL's own gradient."""
    dynamic_sampling: bool = False
    """Questions whose answers all have one reward are left out of the step's means (DAPO)."""
    mask_truncated: bool = False
    """Answers that did not end are not learnt from (DAPO)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Over so many tokens before the limit the reward falls by up to 1 (DAPO's soft punishment)."""

    not_in_ppo: ClassVar[dict[str, str]] = {
        "loss": "its loss is the mean over all tokens",
        "advantages": "its critic says what they are",
        "importance_sampling_level": "each token has an advantage of its own",
        "dynamic_sampling": "it compares no answers with each other",
        "mask_truncated": "ppo.missing_eos_penalty is for answers that were cut off",
        "beta": "ppo.kl_coef is the weight of the KL",
        "kl_estimator": "ppo.kl_coef is the weight of the KL",
    }
    """Settings that have an effect in grpo alone, and why."""

    def reward_stages(self) -> list[str]:
        """The stages whose reward models are asked."""
        return [name.removeprefix(STAGE) for name in self.rewards if name.startswith(STAGE)]

    @property
    def clip_high(self) -> float:
        """`epsilon_high`, or `epsilon` where it is not given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


class Ppo(Strict):
    """The critic, and what tokens are worth, in a stage of objective ppo (Schulman et al. 2017; Ouyang et al.
    2022); settings have the names that they have in TRL."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantages: 0 trusts the critic alone, 1 the rewards alone."""
    vf_coef: float = Field(default=0.1, ge=0)
    """Weight of the critic's loss."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """How far from its estimate before the update the critic may profit."""
    value_from: Name | None = None
    """The earlier stage of objective reward whose head the critic begins with; by default it is 0."""
    kl_coef: float = Field(default=0.05, ge=0)
    """What a nat of the KL to the weights that the stage began with costs, token by token."""
    target_kl: float | None = Field(default=None, gt=0)
    """KL of an answer, in nats, that `kl_coef` is steered to, round by round (Ziegler et al. 2019)."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Over so many answers `kl_coef` may grow or fall by a factor of about 1.2."""
    whiten_advantages: bool = True
    """Advantages are shifted to mean 0 and scaled to variance 1 over the tokens of a round."""
    whiten_rewards: bool = False
    """Rewards of tokens are scaled to variance 1 over the tokens of a round."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of an answer that was cut off."""
