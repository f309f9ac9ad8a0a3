"""Every field of the configurations in transformers, set to another value: the layer follows it, or an error names it.

The expected numbers come from inside whole models, with the masks and rotations that these make.
"""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.models.convert import from_transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # transformers warns of old fields
torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers: install the extra peers")

T = 11
GROUPED = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32,
}  # fmt: skip
WINDOWED = GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
GEMMA = GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 9}
LATENT = GROUPED | {
    "num_key_value_heads": 4, "kv_lora_rank": 6, "q_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 5, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "head_dim": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
BERT = {name: size for name, size in GROUPED.items() if name not in ("num_key_value_heads", "head_dim")}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6}  # fmt: skip
CLASSES = {
    "GPT2Config": GPT2, "BertConfig": BERT, "T5Config": T5, "LlamaConfig": GROUPED,
    "MistralConfig": GROUPED | {"sliding_window": 4}, "Qwen2Config": WINDOWED, "Qwen3Config": WINDOWED,
    "Gemma2Config": GEMMA, "Gemma3TextConfig": GEMMA,
    "GptOssConfig": GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
    "DeepseekV2Config": LATENT, "DeepseekV3Config": LATENT,
}  # fmt: skip
ROPES = [
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8,
     "attention_factor": 1.3, "truncate": False, "beta_fast": 4.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.7,
     "mscale_all_dim": 0.4},
    {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 3, "long_factor": [2.0] * 3,
     "original_max_position_embeddings": 8},
    {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
]  # fmt: skip
# Other values of fields where adding one would not do; and fields that no configuration has by default.
OTHERS = {
    "hidden_size": [32], "n_embd": [32], "d_model": [24], "num_attention_heads": [2, 8], "n_head": [2],
    "num_heads": [2],
    "num_key_value_heads": [1, 4], "head_dim": [8, None], "rope_parameters": ROPES, "num_hidden_layers": [3],
    "layer_types": [["sliding_attention"] * 2, ["full_attention"] * 2, ["full_attention", "chunked_attention"]],
    "sliding_window": [3, None], "hidden_act": ["relu"], "hidden_activation": ["relu"], "activation_function": ["relu"],
    "dense_act_fn": ["gelu"], "feed_forward_proj": ["gated-gelu"], "attn_logit_softcapping": [1.5, None],
    "final_logit_softcapping": [2.0], "use_bidirectional_attention": [True], "summary_type": ["last"],
    "topk_method": ["group_limited_greedy"], "max_window_layers": [0, 2], "n_inner": [20], "q_lora_rank": [None, 10],
    "qk_rope_head_dim": [6], "n_group": [2], "pad_token_id": [3], "classifier_dropout": [0.5], "dtype": [],
    "summary_activation": ["tanh"], "rms_norm_eps": [0.1], "layer_norm_eps": [0.1], "layer_norm_epsilon": [0.1],
    "n_routed_experts": [8], "num_experts_per_tok": [1], "model_type": [], "transformers_version": [],
    "id2label": [], "label2id": [], "problem_type": [], "max_position_embeddings": [16], "n_positions": [16],
    "qk_head_dim": [12], "architectures": [], "chunk_size_feed_forward": [2], "output_attentions": [],
    "output_hidden_states": [], "return_dict": [], "is_encoder_decoder": [],
    "is_causal": [False], "partial_rotary_factor": [0.5], "clip_qkv": [1.0], "attention_chunk_size": [4],
    "position_embedding_type": ["relative_key"], "rope_interleave": [False], "rope_theta": [100.0],
    "rope_scaling": [{"rope_type": "dynamic", "factor": 2.0}], "attention_multiplier": [0.5], "is_decoder": [True],
}  # fmt: skip
EXTRA = [
    "is_causal", "partial_rotary_factor", "clip_qkv", "attention_chunk_size", "position_embedding_type",
    "use_bidirectional_attention", "attention_multiplier", "attention_bias", "rope_theta", "rope_scaling",
]  # fmt: skip

BY_LAYER = ("layer_types", "sliding_window", "max_window_layers", "use_sliding_window", "rope_parameters",
            "scale_attn_by_inverse_layer_idx")  # fmt: skip


def other_values(name, value):
    """Values that differ from the default."""
    if name in OTHERS:
        return [other for other in OTHERS[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    return [1 if value is None else value + 1 if isinstance(value, int) else value / 2 + 0.25]


def recorded(model, kind, layer, part):
    """What a module of attention reads, its context, and what it returns, in a run of the whole model."""
    if kind == "T5Config":
        block = (model.encoder if part == "encoder" else model.decoder).block[layer]
        module = block.layer[1].EncDecAttention if part == "cross" else block.layer[0].SelfAttention
    elif kind == "GPT2Config":
        module = model.h[layer].crossattention if part == "cross" else model.h[layer].attn
    elif kind == "BertConfig":
        block = model.encoder.layer[layer]
        module = (block.crossattention if part == "cross" else block.attention).self
    else:
        module = model.layers[layer].self_attn
    records = []

    def keep(_, args, keywords, output):
        records.append((args[0] if args else keywords["hidden_states"], output[0]))

    module.register_forward_hook(keep, with_kwargs=True)
    ids, context = torch.arange(2 * T).reshape(2, T) * 7 % 31, None
    if kind == "T5Config":
        encoded = model.encoder(ids).last_hidden_state
        context = encoded if part == "cross" else None
        records.clear()
        model(input_ids=ids, decoder_input_ids=ids.flip(1))
    else:
        context = torch.randn(2, 5, model.config.hidden_size) if part == "cross" else None
        model(ids, **({} if context is None else {"encoder_hidden_states": context}))
    x, output = records[0]
    if kind == "BertConfig":
        output = (block.crossattention if part == "cross" else block.attention).output.dense(output)
    return x, context, output


def check(kind, fields, layer=1, part=None, named=None):
    """Check that numbers agree, or that an error names the field; return which."""
    try:
        config = getattr(transformers, kind)(**copy.deepcopy(fields), attn_implementation="eager")
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
            x, context, expected = recorded(model, kind, layer, part)
    except Exception as error:
        return f"transformers refuses it: {error}"
    try:
        ours, params = from_transformers(config, model.state_dict(), layer, part=part)
    except ValueError as error:
        names = [named, *fields[named]] if isinstance(fields.get(named), dict) else [named]
        if named is None or not any(name in str(error) for name in names):
            raise AssertionError(f"the error does not name the field: {error}") from error
        return "named"
    options = {} if context is None else {"context": jnp.asarray(context)}
    came = ours.apply({"params": params}, jnp.asarray(x), **options)
    np.testing.assert_allclose(came, expected.numpy(), atol=2e-5 * max(1, float(expected.abs().max())))
    return "equal"


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_followed_or_named(kind):
    fields, outcomes = CLASSES[kind], {}
    part = "decoder" if kind == "T5Config" else None
    defaults = getattr(transformers, kind)(**fields).to_dict()
    for name in sorted({*defaults, *EXTRA}):
        if name.startswith("_"):
            continue
        for number, value in enumerate(other_values(name, defaults.get(name))):
            for layer in (0, 1) if name in BY_LAYER else (1,):
                try:
                    outcome = check(kind, fields | {name: value}, layer, part, named=name)
                except AssertionError as error:
                    raise AssertionError(f"{name}={value!r} of layer {layer}: {error}") from error
                outcomes[name, number, layer] = outcome
    kinds = list(outcomes.values())
    assert kinds.count("equal") > len(kinds) / 2
    assert kinds.count("equal") + kinds.count("named") > 0.85 * len(kinds), outcomes  # transformers refuses the others


@pytest.mark.parametrize(
    ("kind", "part", "fields"),
    [
        ("GPT2Config", "cross", {"add_cross_attention": True}),
        ("GPT2Config", "cross", {"add_cross_attention": True, "scale_attn_by_inverse_layer_idx": True}),
        ("GPT2Config", None, {"add_cross_attention": True}),
        ("BertConfig", "cross", {"add_cross_attention": True, "is_decoder": True}),
        ("BertConfig", None, {"add_cross_attention": True, "is_decoder": True}),
        ("T5Config", "encoder", {}),
        ("T5Config", "cross", {}),
    ],
)
def test_each_part_of_a_layer(kind, part, fields):
    assert check(kind, CLASSES[kind] | fields, part=part) == "equal"
