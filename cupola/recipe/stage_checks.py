"""What the settings of a stage must agree on, with each other, its parent and its sources."""

from collections.abc import Iterable, Iterator

from cupola.errors import InputError
from cupola.recipe import adapting
from cupola.recipe.alignment import ALSO_READ, Kto, Policy, Ppo, Preference, RewardModel, reward_fault
from cupola.recipe.clock import Clock, length_fault
from cupola.recipe.corpora import CALLED, Format
from cupola.recipe.curve import Curve
from cupola.recipe.model_checks import rope_problems
from cupola.recipe.origin import BEGIN
from cupola.recipe.problem import Problem
from cupola.recipe.rows import Supervised
from cupola.recipe.schema import LARGEST_BF16_DECAY, LearningRate, Optimizer, Recipe, Stage
from cupola.recipe.structure import did_you_mean

MOST_POLAR_EXPRESS_STEPS = 4
"""In bf16 more of them magnify the rounding of a matrix of low rank without end."""
STAND_IN_EPOCH = 10**12  # tokens; the size of the corpus is not known yet, and no check here depends on it


def stage_problems(recipe: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    """What is wrong with a stage whose settings are filled in."""
    path = ("stages", name)
    yield from _parent(recipe, name, stage)
    parent = recipe.parent_of(name)
    before = recipe.stages.get(parent) if parent else None
    assert stage.sequence_length is not None
    yield from known_sources((*path, "data"), set(stage.sources()), recipe)
    yield from read_by(stage.objective, stage.reads, (*path, "data"), stage.sources(), recipe)
    if stage.optimizer and (before is None or stage.optimizer != before.optimizer):
        yield from _optimizer((*path, "optimizer"), stage.optimizer)
    if stage.rope and (before is None or stage.rope != before.rope):
        yield from rope_problems((*path, "rope"), stage.rope, recipe.model)
    yield from _carry(path, stage, before)
    takes_weights = parent is not None and "weights" in stage.carry
    for key, message in adapting.faults(stage, before):
        yield Problem((*path, key), message)
    yield from _rows(path, stage)
    yield from _preference(path, stage, takes_weights)
    if stage.objective != "reward" and stage.reward != RewardModel():
        yield Problem((*path, "reward"), "has no effect without objective reward; remove it")
    yield from _policy(path, stage, takes_weights)
    yield from _rewards(recipe, name, stage)
    yield from _ppo(recipe, name, stage)
    if fault := length_fault(stage.sequence_length.values):
        yield Problem((*path, "sequence_length"), fault)
        return
    longest = stage.longest_row()
    positions = recipe.model.max_positions
    if recipe.model.positions == "learned" and positions and longest > positions:
        yield Problem(
            (*path, "sequence_length"),
            f"{longest} is beyond the {positions} learned positions; raise model.max_positions or shorten it",
        )
    microbatch = recipe.scale.microbatch_tokens
    if microbatch != "auto" and microbatch < longest:
        yield Problem(
            ("scale", "microbatch_tokens"),
            f"{microbatch} is less than one row of {longest} tokens of stage {name}; raise it, or say auto",
        )
    yield from _learning_rate((*path, "learning_rate"), stage.learning_rate)
    if stage.tokens is None:
        yield Problem(path, 'tokens is missing: how long the stage is, such as "20M tokens" or "1000 steps"')
        return
    try:
        Clock(stage.on_clock(), STAND_IN_EPOCH)
    except InputError as error:
        yield Problem(path, str(error))


def _rows(path: tuple[str, ...], stage: Stage) -> Iterator[Problem]:
    """What the documents of a stage are packed into, and what of them is learnt."""
    if stage.objective != "sft" and stage.supervised != Supervised():
        yield Problem((*path, "supervised"), "has no effect without objective sft; remove it")
    if stage.objective != "next_token":
        for key, default in (("packing", "stream"), ("long_documents", None)):
            if getattr(stage, key) != default:
                yield Problem((*path, key), "has no effect without objective next_token; remove it")
    assert stage.sequence_length is not None
    if stage.reading().rows and len(stage.sequence_length.values) > 1:
        yield Problem(
            (*path, "sequence_length"), f"{CALLED[stage.reads]} are packed into rows of one length; give one"
        )
    if stage.reads != "text" and not stage.document_mask:
        yield Problem((*path, "document_mask"), "an answer must not see its neighbours; remove it")


def _preference(path: tuple[str, ...], stage: Stage, takes_weights: bool) -> Iterator[Problem]:
    settings, loss = stage.preference, stage.preference.loss
    if stage.objective != "kto" and stage.kto != Kto():
        yield Problem((*path, "kto"), "has no effect without objective kto; remove it")
    if stage.refers_by_answers and not takes_weights:
        which = f"dpo with loss {loss}" if stage.objective == "dpo" else "kto"
        yield Problem(
            (*path, "objective"),
            f"{which} compares with the weights of a stage before it, and there are none; put it after "
            "another stage, and carry weights",
        )
    if stage.objective != "dpo":
        if settings != Preference():
            yield Problem((*path, "preference"), "has no effect without objective dpo; remove it")
        return
    for key, losses in Preference.only.items():
        if loss not in losses and getattr(settings, key) != Preference.model_fields[key].default:
            yield Problem(
                (*path, "preference", key),
                f"has no effect on loss {loss} (only on {', '.join(losses)}); remove it",
            )


def _policy(path: tuple[str, ...], stage: Stage, takes_weights: bool) -> Iterator[Problem]:
    settings = stage.policy
    if not stage.samples:
        if settings != Policy():
            yield Problem((*path, "policy"), "has no effect without objective grpo or ppo; remove it")
        return
    if stage.objective == "grpo" and settings.completions < 2:
        yield Problem((*path, "policy", "completions"), "grpo compares answers: take at least 2, or ppo")
    if settings.prompts % settings.updates:
        yield Problem(
            (*path, "policy", "updates"),
            f"{settings.prompts} prompts can't be shared among {settings.updates} steps; take a divisor",
        )
    elif stage.batch_tokens and stage.batch_tokens.values != [settings.prompts // settings.updates]:
        yield Problem(
            (*path, "batch_tokens"),
            f"{stage.objective} counts questions: give policy.prompts, and remove it",
        )
    if stage.tokens and stage.tokens.unit in ("", "tokens"):
        yield Problem(
            (*path, "tokens"),
            f'{stage.tokens}: {stage.objective} counts steps; say "100 steps", or "1 epoch" of its questions',
        )
    assert stage.sequence_length is not None
    if settings.max_completion_length >= max(stage.sequence_length.values):
        yield Problem(
            (*path, "policy", "max_completion_length"),
            f"{settings.max_completion_length} leaves no room for a question in rows of "
            f"{max(stage.sequence_length.values)} tokens; shorten it, or raise sequence_length",
        )
    if settings.loss == "cispo" and settings.epsilon_high is None:
        yield Problem((*path, "policy", "epsilon_high"), "is missing: the largest weight of a token of cispo")
    if settings.delta is not None and (settings.loss == "cispo" or settings.delta <= 1 + settings.clip_high):
        yield Problem((*path, "policy", "delta"), "must be above 1 + epsilon_high, and cispo has none")
    if stage.refers and not takes_weights:
        key = ("ppo", "kl_coef") if stage.objective == "ppo" else ("policy", "beta")
        yield Problem(
            (*path, *key), "the KL is to the weights of a stage before it, and there are none; take 0"
        )


def _rewards(recipe: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    """What the rewards are called, and where reward models come from."""
    if not stage.samples:
        return
    path = ("stages", name, "policy", "rewards")
    yield from (Problem((*path, n), fault) for n in stage.policy.rewards if (fault := reward_fault(n)))
    if not any(stage.policy.rewards.values()):
        yield Problem(
            path, "every weight is 0, so that no answer is worth more than another; give one a weight"
        )
    for reward in stage.policy.reward_stages():
        yield from _reward_model(recipe, name, reward, path)


def _ppo(recipe: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    """What a critic asks of the settings, and where its head comes from."""
    path = ("stages", name)
    if stage.objective != "ppo":
        if stage.ppo != Ppo():
            yield Problem((*path, "ppo"), "has no effect without objective ppo; remove it")
        return
    for key, why in Policy.not_in_ppo.items():
        if getattr(stage.policy, key) != Policy.model_fields[key].default:
            yield Problem((*path, "policy", key), f"has no effect on ppo: {why}; remove it")
    if stage.ppo.target_kl is not None and not stage.ppo.kl_coef:
        yield Problem(
            (*path, "ppo", "target_kl"), "steers kl_coef, which is 0 and stays so; give it a first value"
        )
    answers = stage.policy.prompts * stage.policy.completions
    if stage.ppo.target_kl is not None and stage.ppo.kl_horizon < answers:
        yield Problem(
            (*path, "ppo", "kl_horizon"),
            f"{stage.ppo.kl_horizon} is less than the {answers} answers of a round, so kl_coef would jump,"
            f" and could fall below 0; take at least {answers}",
        )
    if stage.ppo.value_from is not None:
        yield from _reward_model(recipe, name, stage.ppo.value_from, (*path, "ppo", "value_from"))


def _reward_model(recipe: Recipe, name: str, asked: str, path: tuple[str, ...]) -> Iterator[Problem]:
    """A stage that must have trained a reward model before this one begins."""
    names = list(recipe.stages)
    models = [n for n in names[: names.index(name)] if recipe.stages[n].objective == "reward"]
    if asked not in models:
        close = did_you_mean(asked, models)
        there = f"there are {', '.join(models)}" if models else "there is none"
        hint = f"did you mean {close}?" if close else there
        yield Problem(path, f"{asked} is no stage of objective reward before this one; {hint}")


def _parent(recipe: Recipe, name: str, stage: Stage) -> Iterator[Problem]:
    names = list(recipe.stages)
    before = ([BEGIN] if recipe.begin else []) + names[: names.index(name)]
    if stage.parent is not None and stage.parent not in before:
        path = ("stages", name, "parent")
        close = did_you_mean(stage.parent, before)
        hint = f"did you mean {close}?" if close else f"before it come {', '.join(before) or 'none'}"
        yield Problem(path, f"{stage.parent} is no stage before this one; {hint}")


def _learning_rate(path: tuple[str, ...], settings: LearningRate) -> Iterator[Problem]:
    if settings.decay == "constant" or isinstance(settings.decay, Curve):
        kind = "constant" if settings.decay == "constant" else "given by shares of the peak"
        for key in ("decay_over", "final"):
            if getattr(settings, key):
                yield Problem((*path, key), f"has no effect where decay is {kind}; remove it")


def _carry(path: tuple[str, ...], stage: Stage, before: Stage | None) -> Iterator[Problem]:
    if "optimizer" not in stage.carry:
        return
    path = (*path, "carry")
    if before is None:
        yield Problem(path, "there is no stage before this one; remove optimizer")
    elif "weights" not in stage.carry:
        yield Problem(path, "the optimizer's state belongs to the weights; carry both")
    elif before.objective != stage.objective and (before.scores or stage.scores):
        yield Problem(path, "the state is of other parameters: one has a scalar head; remove optimizer")
    elif before.optimizer and stage.optimizer and before.optimizer.kind != stage.optimizer.kind:
        yield Problem(
            path,
            f"{stage.optimizer.kind} can't go on from the state of {before.optimizer.kind}; remove optimizer",
        )
    elif before.optimizer and stage.optimizer:
        for key in ("largest_preconditioned", "one_sided_above"):
            if getattr(stage.optimizer, key) != getattr(before.optimizer, key):
                yield Problem(path, f"the state may be of other sides: {key} differs; remove optimizer")


def _optimizer(path: tuple[str, ...], optimizer: Optimizer) -> Iterator[Problem]:
    fields = type(optimizer).model_fields
    for key, kinds in Optimizer.only.items():
        if optimizer.kind not in kinds and getattr(optimizer, key) != fields[key].default:
            has, no = ", ".join(kinds), optimizer.kind
            yield Problem((*path, key), f"has no effect on kind {no} (only on {has}); remove it")
    steps = optimizer.newton_schulz_steps
    if optimizer.newton_schulz == "polar_express" and steps is not None and steps > MOST_POLAR_EXPRESS_STEPS:
        yield Problem(
            (*path, "newton_schulz_steps"),
            f"{steps} steps of polar_express magnify what bf16 rounds; take at most "
            f"{MOST_POLAR_EXPRESS_STEPS}, or newton_schulz: quintic",
        )
    decay = max(*optimizer.betas, optimizer.covariance_decay or 0.0)
    if optimizer.state_dtype == "bf16" and optimizer.kind == "soap" and decay > LARGEST_BF16_DECAY:
        yield Problem(
            (*path, "state_dtype"),
            f"averages in bf16 stand still with a decay rate of {decay}; take fp32, or rates up to "
            f"{LARGEST_BF16_DECAY}",
        )


def known_sources(path: tuple[str, ...], names: set[str], recipe: Recipe) -> Iterator[Problem]:
    for name in sorted(names - set(recipe.corpora)):
        close = did_you_mean(name, recipe.corpora)
        hint = f"did you mean {close}?" if close else f"corpora has {', '.join(recipe.corpora) or 'none'}"
        yield Problem((*path, name), f"there is no corpus {name}; {hint}")


def read_by(
    reader: str, wanted: Format, path: tuple[str, ...], names: Iterable[str], recipe: Recipe
) -> Iterator[Problem]:
    """Sources whose documents are not what an objective, or the tokenizer's training, reads."""
    read = [wanted, ALSO_READ[wanted]] if wanted in ALSO_READ else [wanted]
    for name in names:
        if name in recipe.corpora and (held := recipe.corpora[name].holds()) not in read:
            yield Problem(
                (*path, name),
                f"its documents are {held}, and {reader} reads {' and '.join(read)}; leave it out",
            )
