"""The recipe as strict pydantic models: everything a run can be told, and nothing else.

A field is a full word with its type, default and one sentence. What a single field can't know (paths,
divisibility across blocks, stages against corpora) is checked in `cupola.recipe.checks`.
A mapping whose class names a `shorthand` may be written as that one value: `optimizer: muon` is
`optimizer: {kind: muon}`, `learning_rate: 3e-4` is `learning_rate: {peak: 3e-4}`.
"""

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cupola.recipe.adapting import Lora
from cupola.recipe.alignment import (
    READS,
    SAMPLES,
    SCORES,
    Kto,
    Objective,
    Policy,
    Ppo,
    Preference,
    RewardModel,
)
from cupola.recipe.corpora import Corpus, Format
from cupola.recipe.curve import Curve, Piecewise
from cupola.recipe.kinds import (
    LARGEST_WEIGHT,
    Decay,
    Horizon,
    Interval,
    Lengths,
    Looks,
    Mixture,
    Name,
    NewtonSchulz,
    Positive,
    ShareCurve,
    Warmup,
    Weights,
    WholePath,
)
from cupola.recipe.model import Model
from cupola.recipe.origin import BEGIN, Begin
from cupola.recipe.quantity import Quantity
from cupola.recipe.rotary import Rope
from cupola.recipe.rows import LongDocuments, Packing, Reading, Rows, Supervised, with_long
from cupola.recipe.strict import Share, Strict, round_up


class Tokenizer(Strict):
    """The tokenizer: trained on the corpora, or an existing file."""

    kind: Literal["bpe", "file"] = "bpe"
    """`bpe` trains byte-level BPE; `file` loads any `tokenizer.json`."""
    vocabulary: int = Field(default=32768, ge=300, le=131072)
    """Number of tokens to train, special tokens included."""
    train_on: Weights | None = None
    """Sources and weights of the text it is trained on; by default the first stage's mixture."""
    train_bytes: int = Field(default=50_000_000, ge=1000)
    """At most so many bytes of text are used for training."""
    path: WholePath | None = None
    """The `tokenizer.json`, for kind `file`."""
    add: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Special tokens that it gets beside its own, such as `["<|im_start|>", "<|im_end|>"]`; those that it has
    stay as they are."""
    chat_template: WholePath | None = None
    """How conversations are written down: a file in Jinja, as Hugging Face has it, or a folder that holds a
    `chat_template.jinja`; by default ChatML."""


class Scale(Strict):
    """How the run is spread; the only block that differs between a laptop and a cluster."""

    data: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Data-parallel workers."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel workers."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline stages."""
    context: int = Field(default=1, ge=1)
    """Context-parallel workers."""
    microbatch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Tokens of one forward and backward pass; a batch is as many of them as it takes."""


class Checkpoint(Strict):
    """When to save, and how many to keep."""

    every: Interval = Quantity(10, "%")
    """Interval, on each stage's clock; the end of a stage is always saved."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept of an unfinished stage; a finished stage keeps its last."""


class Evaluate(Strict):
    """Held-out loss and samples in the course of training."""

    every: Interval = Quantity(20, "%")
    """Interval, on each stage's clock; the end of a stage is always evaluated, in full."""
    tokens: int = Field(default=16_384, ge=1)
    """Held-out tokens of each source in the course of training."""
    prompts: list[str] = Field(default=["The people", "In order to", "We must"])
    """Beginnings that the model continues."""
    sample_tokens: int = Field(default=48, ge=1)
    """Length of a sample."""


class Health(Strict):
    """Statistics by layer in the course of training: activations, attention scores, gradients, updates."""

    shorthand: ClassVar[str | None] = "every"
    every: Looks = "auto"
    """Interval, on each stage's clock, or `off`; `auto` is 25 steps or 2% of the stage, what is longer."""


LARGEST_BF16_DECAY = 0.99
"""A moving average takes up 1 less its decay of a difference; bf16 rounds to 0.004, so that from about there
it stands still."""


class Optimizer(Strict):
    """The optimizer; parameters are grouped by declared role, never by shape."""

    shorthand: ClassVar[str | None] = "kind"
    kind: Literal["adamw", "muon", "soap"] = "adamw"
    """`muon` orthogonalises matrices (Jordan et al. 2024), `soap` takes Adam into the eigenbases of their
    gradients' covariances (Vyas et al. 2024); embeddings, head and vectors stay with AdamW."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.95)
    """Decay rates of the moments of AdamW and SOAP."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Of AdamW and SOAP."""
    weight_decay: Positive = Curve.constant(0.1)
    """Decoupled decay, of matrices only; may change over the stage."""
    momentum: ShareCurve = Curve.constant(0.95)
    """Muon's momentum; may change over the stage, such as
    `{points: {0%: 0.85, 5%: 0.95}, between: linear}`."""
    nesterov: bool = True
    """Muon orthogonalises the momentum with the newest gradient counted once more."""
    newton_schulz: NewtonSchulz = "polar_express"
    """Muon's iteration: `polar_express` takes the best polynomial at each step (Amsel et al. 2025), `quintic`
    the same at all (Jordan et al. 2024)."""
    newton_schulz_steps: int | None = Field(default=None, ge=1, le=20)
    """Its steps: fewer cost less, and leave small singular values small. By default 3 of `polar_express` (at
    most 4, beyond which bf16 has nothing left to lift), 5 of `quintic`."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Learning rate of embedding, head and vectors relative to the matrices'."""
    precondition_every: int = Field(default=10, ge=1)
    """SOAP's steps from one renewal of a matrix's eigenbases to the next; matrices take turns."""
    covariance_decay: Share | None = None
    """Decay rate of SOAP's covariances; by default the second of `betas`."""
    largest_preconditioned: int = Field(default=10_000, ge=1)
    """SOAP does not rotate a side of a matrix that is longer."""
    one_sided_above: float = Field(default=4.0, ge=1)
    """Nor one that is more than so many times as long as the other; 1 is the paper's one-sided variant."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of what SOAP keeps of matrices, and of the products with it."""

    only: ClassVar[dict[str, tuple[str, ...]]] = {
        "momentum": ("muon",),
        "nesterov": ("muon",),
        "newton_schulz": ("muon",),
        "newton_schulz_steps": ("muon",),
        "precondition_every": ("soap",),
        "covariance_decay": ("soap",),
        "largest_preconditioned": ("soap",),
        "one_sided_above": ("soap",),
        "state_dtype": ("soap",),
    }
    """The kinds on which a setting has an effect, of those that don't have one on all."""


class LearningRate(Strict):
    """Linear warm-up to a peak, then decay, as a pure function of the stage's clock."""

    shorthand: ClassVar[str | None] = "peak"
    peak: float = Field(gt=0, lt=LARGEST_WEIGHT)
    """The highest value."""
    warmup: Warmup = Quantity(0, "%")
    """Length of the linear rise from 0."""
    decay: Decay = "cosine"
    """Shape of the decay, or shares of the peak at positions: `{0%: 1, 60%: 0.3, 90%: 0.1}`."""
    decay_over: Interval | None = None
    """Length of the decay, at the stage's end; before it the peak is held (WSD). By default all that the
    warm-up leaves."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Where the decay ends, as a share of the peak."""
    batch_rule: Literal["none", "sqrt", "linear"] = "none"
    """While the batch is smaller than the stage's largest, the rate is lower by this power of the ratio."""


class Stage(Strict):
    """One phase of the curriculum: its data, horizon, objective and learning rate.

    Sequence length, batch and optimizer pass on to the next stage of the same objective unless stated,
    rotary positions to the next of any.
    """

    objective: Objective = "next_token"
    """What is learnt: every next token of text (next_token); of conversations, the assistant's words (sft);
    of pairs of answers, which one is preferred (dpo), or a reward that says so (reward); of answers, which
    are wanted (kto); from rewards for its own answers to questions (grpo, and with a critic ppo)."""
    parent: Name | None = None
    """The stage whose weights it begins with; by default the one before. `begin` means the recipe's."""
    data: Mixture
    """Sources and weights, or such mappings at positions: `{0%: {...}, 60%: {...}}`; or the way from one to
    the next: `{points: {0%: {...}, 100%: {...}}, between: linear}`."""
    tokens: Horizon | None = None
    """The horizon: "20M tokens", "1000 steps" or "2 epochs" (an epoch ends when the first source has been
    seen once)."""
    sequence_length: Lengths | None = None
    """Tokens in a row; may grow: `{0%: 128, 40%: 256}`, or `{points: {0%: 512, 50%: 4096}, between: linear}`
    in steps of the smallest, or of `multiple: 256`."""
    rope: Rope | None = None
    """Rotary positions from this stage on, for rows longer than before: `{rope_type: yarn, factor: 8}`."""
    batch_tokens: Lengths | None = None
    """Tokens in a step; may grow likewise, to any size: `{0%: 4096, 50%: 16384}`."""
    optimizer: Optimizer | None = None
    """The optimizer."""
    learning_rate: LearningRate
    """Its learning rate."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    z_loss: Positive = Curve.constant(0.0)
    """Weight of the mean squared log-normaliser (PaLM); may change over the stage."""
    carry: list[Literal["weights", "optimizer"]] = Field(default=["weights"])
    """What is taken over from the parent."""
    freeze: list[str] = Field(default=[])
    """Parameters that stay as they are, by role (`embedding`, `head`, `matrix`, `low_rank`, `vector`) or by a
    pattern of names, such as `blocks.0.*`."""
    lora: Lora | None = None
    """Train low-rank updates of linear layers, and leave the weights alone; they are merged at the end."""
    document_mask: bool = True
    """Attention never crosses a document."""
    packing: Packing = "stream"
    """Of objective next_token. stream: documents end to end, cut into rows. best_fit: rows of whole
    documents, of which only those longer than a row are cut (Ding et al. 2024)."""
    long_documents: LongDocuments | None = None
    """Long documents raised within each source of text: `{over: 4096, share: 0.7}`."""
    supervised: Supervised = Supervised()
    """What objective sft learns of conversations."""
    preference: Preference = Preference()
    """The loss of objective dpo."""
    kto: Kto = Kto()
    """The loss of objective kto."""
    reward: RewardModel = RewardModel()
    """The loss of objective reward."""
    policy: Policy = Policy()
    """Sampling, rewards and loss of objectives grpo and ppo."""
    ppo: Ppo = Ppo()
    """The critic, and what tokens are worth, of objective ppo."""

    @property
    def scores(self) -> bool:
        """Has its model a scalar head beside that of words?"""
        return self.objective in SCORES

    @property
    def refers(self) -> bool:
        """Does it hold its answers against those of the weights that it began with?"""
        if self.objective == "ppo":
            return self.ppo.kl_coef > 0
        return self.samples and self.policy.beta > 0

    def beside(self) -> list[str]:
        """The earlier stages, other than its parent, whose weights it needs: its reward models, and the one
        whose head its critic begins with."""
        names = set(self.policy.reward_stages()) if self.samples else set()
        if self.objective == "ppo" and self.ppo.value_from is not None:
            names.add(self.ppo.value_from)
        return sorted(names)

    @property
    def samples(self) -> bool:
        """Does it learn from answers of its own? Then its clock counts the questions, each a row of one."""
        return self.objective in SAMPLES

    def on_clock(self) -> "Stage":
        """The stage as its clock counts it."""
        if not self.samples:
            return self
        return self.model_copy(update={"sequence_length": Piecewise(((Quantity(0, "%"), 1),))})

    @property
    def reads(self) -> Format:
        """What the documents of its sources are."""
        return READS[self.objective]

    @property
    def refers_by_answers(self) -> bool:
        """Does it need to know what its answers were worth to the weights that it began with?"""
        return self.objective == "kto" or (self.objective == "dpo" and self.preference.needs_reference)

    def reading(self) -> Reading:
        """How it reads each of its sources."""
        if self.reads == "text":
            rows = Rows("text", self.longest_row()) if self.packing == "best_fit" else None
            if self.long_documents:
                return Reading(rows, self.long_documents.over, self.longest_row())
            return Reading(rows)
        settings = self.supervised if self.objective == "sft" else Supervised()
        return Reading(Rows(self.reads, self.longest_row(), settings.learn, settings.too_long))

    def mixture(self, stores: Collection[str]) -> Piecewise[dict[str, float]]:
        """The weights of what is stored, by name: of the sources, and of their long documents where those are
        stored by themselves."""
        return with_long(self.data, self.long_documents.share, stores) if self.long_documents else self.data

    def longest_row(self) -> int:
        """Tokens of the longest row; of the only one, where it learns from conversations."""
        assert self.sequence_length is not None
        return max(self.sequence_length.values)

    def sources(self) -> list[str]:
        """The corpora that the stage reads at some time, sorted."""
        return sorted({source for weights in self.data.values for source in weights})


class Recipe(Strict):
    """Everything from corpus to trained model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name, and its folder's."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The one seed from which all randomness is derived."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` measures once which is faster, records it, and keeps it on resume."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block; `auto` only where it pays for the length of the run."""
    begin: Begin | None = None
    """The weights that the first stage begins with; by default drawn from the seed."""
    corpora: dict[Name, Corpus] = Field(default={})
    """The sources of text, by name."""
    tokenizer: Tokenizer = Tokenizer()
    """How text becomes tokens."""
    model: Model
    """The network."""
    scale: Scale = Scale()
    """How the run is spread."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    evaluate: Evaluate = Evaluate()
    """What is measured in the course of training."""
    health: Health = Health()
    """When to look at the numbers inside; the weights are the same with and without."""
    stages: dict[Name, Stage]
    """The stages, in the order in which they run."""

    def sources(self) -> list[str]:
        """The corpora that some stage reads, in the order in which they are written."""
        used = {source for stage in self.stages.values() for source in stage.sources()}
        return [name for name in self.corpora if name in used]

    def parent_of(self, name: str) -> str | None:
        """The stage whose weights a stage begins with; of the first `begin` where the recipe has that, else
        None."""
        names = list(self.stages)
        first = BEGIN if self.begin else None
        return self.stages[name].parent or next(reversed(names[: names.index(name)]), first)

    def model_of(self, stage: str) -> Model:
        """The model as a stage trains it: with the rotary positions that are in force there.

        Where those are not the model's own, `max_positions` is the context that its weights have come to, the
        longest row of the stages that they have gone through; so it is where they begin with a context.
        """
        context = self.context_of(stage)
        found = self.model.stretched(self.stages[stage].rope, context)
        if self.begin and found.is_rotary() and context > (found.max_positions or 0):
            return found.model_copy(update={"max_positions": context})
        return found

    def context_of(self, stage: str) -> int:
        """Tokens of the longest row that the weights have gone through at the end of a stage."""
        if self.begin and stage == BEGIN:
            return self.model.max_positions or 0
        settings, parent = self.stages[stage], self.parent_of(stage)
        before = self.context_of(parent) if parent and "weights" in settings.carry else 0
        return max(before, settings.longest_row())

    def rows(self, tokenizer_size: int) -> int:
        """Rows of embedding and head; those of the weights that it begins with, or more if it takes more."""
        rows = self.model.rows(tokenizer_size)
        return max(rows, round_up(tokenizer_size, 64)) if self.begin and rows < tokenizer_size else rows

    def tokenizer_mixture(self) -> dict[str, float]:
        """Sources and weights of the text that the tokenizer is trained on; none where it is a file."""
        if self.tokenizer.kind == "file":
            return {}
        return self.tokenizer.train_on or next(iter(self.stages.values())).data.values[0]
