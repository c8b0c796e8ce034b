"""TRL's side: its trainers as a user runs them, on the same weights and the same tokens.

Settings are TRL's defaults but for what would make the comparison unequal: no gradient checkpointing (which
computes again what Cupola keeps), the same precision, the same items a step, no logging and no checkpoints.
"""

import itertools
import os
from collections.abc import Callable
from importlib.metadata import version
from tempfile import mkdtemp
from typing import Any, cast

from bench.posttraining.gate import Gate
from bench.posttraining.reward import overlap
from bench.posttraining.task import Task
from cupola.errors import InputError
from cupola.train.questions import Questions

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HF_DATASETS_CACHE", mkdtemp(prefix="datasets"))

import datasets
import torch
import transformers
import trl

datasets.disable_progress_bars()
ROWS_AT_ONCE = 1
"""Packed rows of a pass: torch gets them as one sequence with a mask, which grows with the square."""


class Theirs:
    """The model and the settings that all trainers share."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.stage = task.recipe.stages[task.name]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(task.exported)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            task.exported, attn_implementation="sdpa", dtype=torch.float32
        )
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def settings(self, at_once: int, per_step: int) -> dict[str, Any]:
        """Arguments of every configuration.

        Args:
            at_once, per_step: rows of a forward and backward pass, and of a step.
        """
        optimizer, rate = self.stage.optimizer, self.stage.learning_rate
        assert optimizer is not None
        cuda = torch.cuda.is_available()
        return {
            "output_dir": mkdtemp(prefix="trl"),
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": per_step // at_once,
            "max_steps": 1_000_000,
            "learning_rate": rate.peak,
            "lr_scheduler_type": "constant",
            "weight_decay": optimizer.weight_decay.values[0],
            "adam_beta1": optimizer.betas[0],
            "adam_beta2": optimizer.betas[1],
            "max_grad_norm": self.stage.gradient_clip,
            "gradient_checkpointing": False,
            "bf16": self.task.precision == "bf16",
            "use_cpu": not cuda,
            "dataloader_pin_memory": cuda,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }

    def train(self, trainer: Any, gate: Gate, figures: Callable[[], dict[str, float]] = dict) -> None:
        """`trainer.train()`, until the gate's other side has had enough."""

        class Turns(transformers.TrainerCallback):
            def on_step_end(self, *arguments: Any, **rest: Any) -> None:
                gate.done(**figures())

        trainer.add_callback(Turns())
        trainer.train()


def _tuning(task: Task, gate: Gate, packing: bool) -> None:
    theirs = Theirs(task)
    sequences = [sequence for (sequence,) in task.sequences()]
    # Its own name for what is learnt, in a data set that is tokenized.
    dataset = datasets.Dataset.from_list(
        [{"input_ids": ids, "assistant_masks": list(map(int, mask))} for ids, mask in sequences]
    )
    row = theirs.stage.longest_row()
    batch = theirs.stage.batch_tokens
    assert batch is not None
    if packing:
        sizes = theirs.settings(ROWS_AT_ONCE, batch.values[0] // row)
    else:
        sizes = theirs.settings(task.at_once, task.items_per_step)
    trainer: Any = trl.SFTTrainer(
        model=theirs.model,
        args=trl.SFTConfig(max_length=row, packing=packing, **sizes),
        train_dataset=dataset,
        processing_class=theirs.tokenizer,
    )
    step = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"]
    gate.units = step * task.tokens_of_item * len(task.items) / len(trainer.train_dataset)
    total, learnt = 0.0, 0
    rows = list(trainer.train_dataset)
    trainer.model.eval()
    for start in range(0, len(rows), sizes["per_device_train_batch_size"]):
        inputs = trainer.data_collator(rows[start : start + sizes["per_device_train_batch_size"]])
        inputs = {
            name: value.to(trainer.model.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        counted = int((inputs["labels"][:, 1:] >= 0).sum())
        with torch.no_grad(), trainer.compute_loss_context_manager():
            total += counted * float(trainer.compute_loss(trainer.model, inputs))
        learnt += counted
    gate.say(parameters=theirs.parameters, first={"loss": total / learnt}, library=library())
    gate.wait()
    theirs.train(trainer, gate)


def padded(task: Task, gate: Gate) -> None:
    """SFTTrainer as it comes: conversations are padded to the longest of their pass."""
    _tuning(task, gate, packing=False)


def packed(task: Task, gate: Gate) -> None:
    """SFTTrainer with packing=True (best fit), without a kernel for it: attention by mask."""
    _tuning(task, gate, packing=True)


class _Pairs(trl.DPOTrainer):
    """Takes a data set that is tokenized, which its parent would tokenize."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset


def _pairs_trainer(task: Task, theirs: Theirs) -> Any:
    records = []
    for chosen, rejected in task.sequences():
        records.append(
            {
                "prompt_ids": chosen[0][: chosen[1].index(True)],
                "chosen_ids": _answer(*chosen),
                "rejected_ids": _answer(*rejected),
            }
        )
    return _Pairs(
        model=theirs.model,
        args=trl.DPOConfig(
            max_length=theirs.stage.longest_row(),
            beta=theirs.stage.preference.beta,
            precompute_ref_log_probs=True,
            **theirs.settings(task.at_once, task.items_per_step),
        ),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=theirs.tokenizer,
    )


def _answer(ids: list[int], mask: list[bool]) -> list[int]:
    """What is learnt, which is in one piece."""
    return list(itertools.compress(ids, mask))


def pairs(task: Task, gate: Gate) -> None:
    """DPOTrainer with precompute_ref_log_probs=True."""
    theirs = Theirs(task)
    trainer = _pairs_trainer(task, theirs)
    gate.units = task.items_per_step * task.tokens_of_item
    rows = list(trainer.train_dataset)
    losses = []
    for start in range(0, len(rows), task.at_once):
        some = rows[start : start + task.at_once]
        inputs = {name: part.to(trainer.model.device) for name, part in trainer.data_collator(some).items()}
        with torch.no_grad(), trainer.compute_loss_context_manager():
            losses += [float(trainer.compute_loss(trainer.model, inputs))] * len(some)
    first = {
        "loss": sum(losses) / len(losses),
        "chosen_log_prob": sum(row["ref_chosen_logps"] for row in rows) / len(rows),
        "rejected_log_prob": sum(row["ref_rejected_logps"] for row in rows) / len(rows),
    }
    gate.say(parameters=theirs.parameters, first=first, library=library())
    gate.wait()
    theirs.train(trainer, gate)


def reference(task: Task, gate: Gate) -> None:
    """What `precompute_ref_log_probs` does: all pairs, and again."""
    theirs = Theirs(task)
    trainer = _pairs_trainer(task, theirs)
    dataset = trainer.train_dataset.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    gate.units = task.tokens_of_item * len(task.items)
    gate.say(parameters=theirs.parameters, first={}, library=library())
    gate.wait()
    for number in itertools.count():
        trainer._precompute_model_hash = f"again {number}"  # else what it did is read from its cache
        trainer._precompute_ref_logps(dataset, "train", task.at_once)
        gate.done()


def _rewards_trainer(task: Task, theirs: Theirs) -> Any:
    """GRPOTrainer for the same questions.

    Raises:
        InputError: its tokens of a question are others.
    """
    policy = theirs.stage.policy
    prepared = task.prepared
    (questions,) = prepared.train_sources(theirs.stage).values()
    assert isinstance(questions, Questions)
    prompts = [theirs.tokenizer.decode(question.ids) for question in questions.questions]
    for prompt, question in zip(prompts, questions.questions, strict=True):
        if theirs.tokenizer(prompt)["input_ids"] != question.ids.tolist():
            raise InputError(f"TRL reads the question {prompt!r} as other tokens than Cupola does")
    records = [
        {"prompt": prompt, "answers": question.answer}
        for prompt, question in zip(prompts, questions.questions, strict=True)
    ]
    answers = policy.prompts * policy.completions
    return trl.GRPOTrainer(
        model=theirs.model,
        reward_funcs=cast(Any, overlap),
        args=trl.GRPOConfig(
            num_generations=policy.completions,
            max_completion_length=policy.max_completion_length,
            temperature=policy.temperature,
            loss_type=policy.loss,
            **theirs.settings(task.at_once, answers),
        ),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=theirs.tokenizer,
    )


def _ready_for_rewards(task: Task, gate: Gate) -> tuple[Theirs, Any]:
    """The trainer, when its turn has come; a unit is an answer."""
    theirs = Theirs(task)
    trainer = _rewards_trainer(task, theirs)
    policy = theirs.stage.policy
    gate.units = policy.prompts * policy.completions
    gate.say(parameters=theirs.parameters, first={}, library=library())
    gate.wait()
    return theirs, trainer


def sampling(task: Task, gate: Gate) -> None:
    """The sampling of GRPOTrainer's step, by transformers."""
    theirs, trainer = _ready_for_rewards(task, gate)
    policy = theirs.stage.policy
    trainer.model.train()
    prompts = itertools.cycle(trainer.train_dataset["prompt"])
    ends = {theirs.tokenizer.eos_token_id, *trainer.eos_token_ids}
    while True:
        asked = list(itertools.islice(prompts, policy.prompts))
        repeated = [prompt for prompt in asked for _ in range(policy.completions)]
        ids = trainer._tokenize_prompts(repeated)[0]
        found, _ = trainer._generate_single_turn(ids, None, {}, policy.completions)
        gate.done(
            completion_length=sum(map(len, found)) / len(found),
            truncated=sum(answer[-1] not in ends for answer in found) / len(found),
        )


def rewards(task: Task, gate: Gate) -> None:
    """GRPOTrainer, sampling by transformers."""
    theirs, trainer = _ready_for_rewards(task, gate)
    names = {
        "completion_length": "completions/mean_length",
        "truncated": "completions/clipped_ratio",
        "reward": "reward",
    }

    def figures() -> dict[str, float]:
        logged = trainer._metrics["train"]
        return {name: float(logged[theirs][-1]) for name, theirs in names.items() if logged.get(theirs)}

    theirs.train(trainer, gate, figures)


def library() -> str:
    """What was measured."""
    return f"TRL {version('trl')}, transformers {version('transformers')}"
