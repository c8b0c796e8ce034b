"""TRL as an oracle: a tiny Llama that its trainers take, and what our losses take of its batches."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from cupola.objectives.preference_losses import Completions


def load(folder: Path) -> SimpleNamespace:
    """TRL, a tokenizer by characters, a tiny Llama and another as its reference; the import is slow."""
    import datasets
    import transformers
    import trl
    from trl.experimental import cpo, orpo

    tokenizer = character_tokenizer(transformers)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # so that the two models disagree
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=1,
    )

    def language_model(seed: int):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).eval()

    return SimpleNamespace(
        library=trl,
        cpo=cpo,
        orpo=orpo,
        tokenizer=tokenizer,
        language_model=language_model,
        policy=language_model(0),
        reference=language_model(1),
        reward=transformers.LlamaForSequenceClassification(config).eval(),
        dataset=datasets.Dataset.from_list,
        arguments={
            "output_dir": str(folder),
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 8,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    )


def character_tokenizer(transformers):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{chr(i): i - 29 for i in range(32, 127)}}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def pairs() -> list[dict[str, str]]:
    """Chosen and rejected answers of many lengths."""
    return [
        {
            "prompt": f"{i}+{i}=",
            "chosen": f"{2 * i}" + "!" * (i % 3),
            "rejected": f"{i * 100} is it"[: 4 + i % 5],
        }
        for i in range(24)
    ]


def token_log_probs(model, ids, attention) -> torch.Tensor:
    """(B, T - 1) log-probability of each token but the first."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    return F.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def completions(trl, ids, attention, mask, reference: bool = True) -> Completions:
    """What our losses take of a batch of TRL's."""
    mask = mask[:, 1:]

    def summed(model) -> torch.Tensor:
        return (token_log_probs(model, ids, attention) * mask).sum(1)

    with torch.no_grad():
        of_reference = summed(trl.reference) if reference else None
    return Completions(summed(trl.policy), mask.sum(1), of_reference)


def halves(both: Completions) -> tuple[Completions, Completions]:
    """Chosen and rejected of a batch that has one after the other."""
    parts = [None if p is None else p.chunk(2) for p in (both.log_probs, both.lengths, both.reference)]
    chosen, rejected = (Completions(*(None if p is None else p[i] for p in parts)) for i in range(2))
    return chosen, rejected
