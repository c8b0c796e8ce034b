"""Small models of every kind that the tests build."""

from cupola.recipe.model import RWKV7 as RWKV7Settings
from cupola.recipe.model import Experts, Mamba, Mamba2, Model, Rope

LLAMA = Model(layers=2, width=64, heads=4, key_value_heads=2, feedforward=96)
LLAMA31 = Model(
    layers=3,
    width=48,
    heads=6,
    key_value_heads=2,
    feedforward=80,
    norm_epsilon=1e-6,
    attention_bias=True,
    output_bias=True,
    feedforward_bias=True,
    rope=Rope(
        rope_theta=500.0,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)
LLAMA_LINEAR = Model(layers=1, width=32, heads=2, tied=True, rope=Rope(rope_type="linear", factor=4.0))
QWEN3 = Model(
    layers=2, width=64, heads=4, key_value_heads=2, head_width=32, feedforward=96, qk_norm=True, tied=True
)
GPT2 = Model(
    layers=2,
    width=48,
    heads=4,
    activation="gelu_tanh",
    norm="layernorm",
    attention_bias=True,
    output_bias=True,
    feedforward_bias=True,
    positions="learned",
    max_positions=64,
    tied=True,
)
GPT2_EXACT = GPT2.model_copy(update={"activation": "gelu", "width": 32, "heads": 2, "layers": 1})
SLIDING = Model(
    layers=4,
    width=48,
    heads=4,
    key_value_heads=2,
    pattern=("sliding_attention * 3", "attention"),  # type: ignore[arg-type]
    window=6,
    positions="none",
)
EXPERTS = Model(layers=2, width=48, heads=4, key_value_heads=2, experts=Experts(count=6, active=2, width=32))
EXPERTS_BIAS = Model(
    layers=3,
    width=32,
    heads=2,
    experts=Experts(
        count=8, active=3, width=16, shared=24, first_dense=1, score="sigmoid", balance="bias", bias_rate=0.01
    ),
)
MAMBA = Model(family="mamba", layers=2, width=32, tied=True, mamba=Mamba(state=4))
MAMBA2 = Model(family="mamba2", layers=3, width=32, mamba2=Mamba2(state=8, head_width=16))
MAMBA2_GROUPS = Model(
    family="mamba2",
    layers=2,
    width=32,
    tied=True,
    mamba2=Mamba2(state=8, head_width=8, groups=2, convolution=3),
)
RWKV7 = Model(family="rwkv7", layers=3, width=32, rwkv7=RWKV7Settings(head_width=16))
RWKV7_ONE = Model(family="rwkv7", layers=1, width=32, tied=True, rwkv7=RWKV7Settings(head_width=8))
HYBRID = Model(
    family="hybrid",
    layers=4,
    width=32,
    heads=2,
    pattern=("mamba2", "rwkv7", "sliding_attention", "mamba"),  # type: ignore[arg-type]
    window=5,
    mamba=Mamba(state=4),
    mamba2=Mamba2(state=8, head_width=16),
    rwkv7=RWKV7Settings(head_width=16),
)
GRANITE = Model(
    family="hybrid",
    layers=2,
    width=32,
    heads=4,
    key_value_heads=2,
    pattern=("mamba2", "attention"),
    experts=Experts(count=4, active=2, width=24, shared=16),
    mamba2=Mamba2(state=8, head_width=16),
    positions="none",
    embedding_multiplier=12.0,
    residual_multiplier=0.25,
    attention_multiplier=0.125,
    logits_scaling=3.0,
    tied=True,
)
TRANSFORMERS = {
    "llama": LLAMA,
    "llama3.1": LLAMA31,
    "linear": LLAMA_LINEAR,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "gpt2-exact": GPT2_EXACT,
}
MIXTURES = {"experts": EXPERTS, "experts-bias": EXPERTS_BIAS}
RECURRENT = {
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "mamba2-groups": MAMBA2_GROUPS,
    "rwkv7": RWKV7,
    "rwkv7-one": RWKV7_ONE,
}
HYBRIDS = {"hybrid": HYBRID, "granite": GRANITE}
ALL = TRANSFORMERS | {"sliding": SLIDING} | MIXTURES | RECURRENT | HYBRIDS
