"""Small models of every kind that the tests build."""

from cupola.recipe.model import Experts, Model, Rope

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
TRANSFORMERS = {
    "llama": LLAMA,
    "llama3.1": LLAMA31,
    "linear": LLAMA_LINEAR,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "gpt2-exact": GPT2_EXACT,
}
MIXTURES = {"experts": EXPERTS, "experts-bias": EXPERTS_BIAS}
ALL = TRANSFORMERS | {"sliding": SLIDING} | MIXTURES
