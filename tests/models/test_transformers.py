"""Layers converted from transformers' models, compared with the module of the same name there."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxattn.masks import SlidingWindow
from jaxattn.models.convert import from_transformers
from jaxattn.models.convert.transformers import recipe_of
from jaxattn.rotary import LinearScaling

T, WIDTH = 26, 48
SIZES = {
    "vocab_size": 32, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
LATENT = {
    **SIZES, "num_key_value_heads": 4, "kv_lora_rank": 10, "q_lora_rank": 14, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 5, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 9}
T5 = {
    "vocab_size": 32, "d_model": WIDTH, "d_kv": 10, "d_ff": 32, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
}  # fmt: skip
# Name of the case: the class of the configuration, its fields, the layer, and what the layer does.
CASES = {
    "gpt2": ("GPT2Config", {"vocab_size": 32, "n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}, 1),
    "gpt2-scaled-by-layer": (
        "GPT2Config",
        {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "scale_attn_by_inverse_layer_idx": True},
        1,
    ),
    "bert": ("BertConfig", SIZES, 1),
    "t5-encoder": ("T5Config", T5, 0),
    "t5-decoder": ("T5Config", T5, 0),
    "t5-cross": ("T5Config", T5, 1),
    "llama": ("LlamaConfig", {**GROUPED, "head_dim": 10, "attention_bias": True}, 1),
    "llama-3": ("LlamaConfig", {**GROUPED, "rope_parameters": LLAMA3}, 0),
    "llama-linear": ("LlamaConfig", {**GROUPED, "rope_parameters": LINEAR}, 0),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 7}, 1),
    "qwen2": ("Qwen2Config", {**GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, 0),
    "qwen2-sliding": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        1,
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16, "rope_parameters": YARN}, 1),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 2.0}, 1),
    "gemma2-sliding": ("Gemma2Config", {**GEMMA, "sliding_window": 5}, 0),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}, 1),
    "gemma3-sliding": ("Gemma3TextConfig", {**GEMMA, "sliding_window": 5}, 0),
    "gpt-oss": ("GptOssConfig", {**GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, 1),
    "gpt-oss-sliding": (
        "GptOssConfig",
        {**GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5},
        0,
    ),
    "deepseek-v2": ("DeepseekV2Config", {**LATENT, "q_lora_rank": None}, 0),
    "deepseek-v3": (
        "DeepseekV3Config",
        {**LATENT, "attention_bias": True, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
        0,
    ),
    "deepseek-v3-halves": ("DeepseekV3Config", {**LATENT, "rope_interleave": False}, 0),
}  # fmt: skip
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def peers():
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    return torch, pytest.importorskip("transformers", reason="compares with transformers: install the extra peers")


@functools.cache
def converted(torch, transformers, case):
    """Return a model with random weights, the module of attention, and the keywords that convert it."""
    kind, options, layer = CASES[case]
    config = getattr(transformers, kind)(**options, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    part = case.removeprefix("t5-") if case.startswith("t5") else None
    if part is not None:
        block = (model.encoder if part == "encoder" else model.decoder).block[layer]
        module = block.layer[1].EncDecAttention if part == "cross" else block.layer[0].SelfAttention
    elif case.startswith("gpt2"):
        module = model.h[layer].attn
    else:
        module = model.encoder.layer[layer].attention if case == "bert" else model.layers[layer].self_attn
    return model, module, {"layer": layer} | ({} if part is None else {"part": part})


def additive_mask(torch, case, module):
    """Build the mask that the model would give to the module, by the definition."""
    query, key = torch.arange(T)[:, None], torch.arange(T)[None]
    allowed = torch.ones(T, T, dtype=torch.bool)
    if case not in ("bert", "t5-encoder", "t5-cross"):
        allowed = key <= query
    window = getattr(module, "sliding_window", None) or (module.config.sliding_window if case == "mistral" else None)
    if window is not None:
        allowed = allowed & (key > query - window)
    return torch.zeros(T, T).masked_fill(~allowed, float("-inf"))[None, None]


def theirs(torch, case, model, module, x, context):
    """Run the module."""
    mask, positions = additive_mask(torch, case, module), torch.arange(T)[None]
    if case.startswith("t5"):
        return module(x, mask=mask, key_value_states=context)[0]
    if case == "bert":
        # The module adds the residual and normalizes; attention alone is these two.
        return module.output.dense(module.self(x, attention_mask=mask)[0])
    if case.startswith("gpt2"):
        return module(x, attention_mask=mask)[0]
    kind = (module.layer_type,) if case.startswith("gemma3") else ()
    rotation = model.rotary_emb(x, positions, *kind)
    return module(hidden_states=x, position_embeddings=rotation, attention_mask=mask)[0]


def inputs(torch, case):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, T, WIDTH)).astype(np.float32)
    context = rng.standard_normal((2, T, WIDTH)).astype(np.float32) if case == "t5-cross" else None
    return x, context


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_those_of_the_module_in_transformers(peers, case):
    torch, transformers = peers
    model, module, which = converted(torch, transformers, case)
    layer, params = from_transformers(model.config, model.state_dict(), **which)
    x, context = inputs(torch, case)
    direction = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32) / 10

    x_torch = torch.tensor(x, requires_grad=True)
    context_torch = None if context is None else torch.tensor(context)
    model.zero_grad()
    expected = theirs(torch, case, model, module, x_torch, context_torch)
    (expected * torch.tensor(direction)).sum().backward()

    def run(params, x):
        output = layer.apply({"params": params}, x, **({} if context is None else {"context": context}))
        return (output * direction).sum(), output

    (_, actual), gradients = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(actual, expected.detach().numpy(), **TOLERANCE)
    np.testing.assert_allclose(gradients[1], x_torch.grad.numpy(), **TOLERANCE)
    by_name = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    _, expected_gradients = from_transformers(model.config, by_name, **which)
    assert jax.tree.structure(gradients[0]) == jax.tree.structure(expected_gradients)
    for ours, peer in zip(*map(jax.tree.leaves, (gradients[0], expected_gradients)), strict=True):
        np.testing.assert_allclose(ours, peer, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.abs(peer).max())))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("bert", "t5-encoder", "t5-cross")])
def test_a_prefill_and_twenty_decoded_tokens_equal_the_whole_sequence_in_transformers(peers, case):
    torch, transformers = peers
    model, module, which = converted(torch, transformers, case)
    layer, params = from_transformers(model.config.to_dict(), model.state_dict(), **which, cache_length=T)
    x, _ = inputs(torch, case)
    with torch.no_grad():
        expected = theirs(torch, case, model, module, torch.tensor(x), None).numpy()

    @jax.jit
    def read(cache, x):
        return layer.apply({"params": params} | cache, x, decode=True, mutable=["cache"])

    output, cache = read({}, x[:, : T - 20])
    outputs = [output]
    for t in range(T - 20, T):
        output, cache = read(cache, x[:, t : t + 1])
        outputs.append(output)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), expected, **TOLERANCE)


LLAMA = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}


def llama_tensors(prefix="model.layers.1.self_attn."):
    rng = np.random.default_rng(0)
    return {f"{prefix}{name}_proj.weight": rng.standard_normal((8, 8)).astype(np.float32) for name in "qkvo"}


def assert_same_params(actual, expected):
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "prefix", ["", "layers.1.self_attn.", "model.layers.1.self_attn.", "model.language_model.layers.1.self_attn."]
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_tensors_of_the_model_and_of_the_module_are_taken_with_any_prefix(prefix, convert):
    tensors = {name: convert(tensor) for name, tensor in llama_tensors(prefix).items()}
    _, params = from_transformers(LLAMA, tensors, layer=1)
    np.testing.assert_array_equal(params["key"]["kernel"], tensors[f"{prefix}k_proj.weight"].T)


@pytest.mark.parametrize("count", [1, 3])
def test_a_directory_gives_the_layer_without_reading_the_tensors_of_others(tmp_path, count):
    tensors = llama_tensors() | {"model.layers.0.mlp.experts.blocks": np.ones((2, 2), np.uint8)}
    names = sorted(tensors)
    if count == 1:
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        files = {name: f"model-{number % count}.safetensors" for number, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    _, params = from_transformers(LLAMA, tmp_path, layer=1)
    assert_same_params(params, from_transformers(LLAMA, llama_tensors(), layer=1)[1])


def test_fields_of_before_transformers_5_say_the_same():
    llama3 = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    before, _ = from_transformers(LLAMA | {"rope_theta": 500.0, "rope_scaling": llama3}, llama_tensors(), layer=1)
    today, _ = from_transformers(LLAMA | {"rope_parameters": LLAMA3}, llama_tensors(), layer=1)
    assert before.rotary == today.rotary
    gemma = {"model_type": "gemma3_text", "hidden_size": 8, "num_attention_heads": 2, "rope_theta": 1e6}
    gemma |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e4}
    kinds = [recipe_of(gemma | {"sliding_window_pattern": 2}, layer).fields for layer in (0, 1)]
    assert [(kind["rotary"].base, kind["rotary"].scaling) for kind in kinds] == [(1e4, None), (1e6, LinearScaling(8.0))]
    assert kinds[0]["mask"] == SlidingWindow(4096)


def test_every_layer_of_a_t5_stack_has_the_table_of_the_first(peers):
    torch, transformers = peers
    model, _, _ = converted(torch, transformers, "t5-decoder")
    tables = [from_transformers(model.config, model.state_dict(), layer, part="decoder")[1] for layer in (0, 1)]
    np.testing.assert_array_equal(*(params["relative_bias"] for params in tables))


def test_a_rolling_cache_takes_the_place_of_the_long_one():
    config = LLAMA | {
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "sliding_window": 3,
        "max_position_embeddings": 99,
    }
    layer, params = from_transformers(config, llama_tensors(), layer=1, rolling_cache=True)
    _, cache = layer.apply({"params": params}, jnp.ones((9, 8)), decode=True, mutable=["cache"])
    assert max(leaf.size for leaf in jax.tree.leaves(cache)) == 2 * 8


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "falcon"}, "model_type='falcon', but supported are bert, deepseek_v2"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0, which is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic', but supported are 'default'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None, but rope_type='linear' needs a number"),
        ({"rope_parameters": {"rope_theta": 1e4, "twist": 2.0}}, "twist=2.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"is_causal": False}, "is_causal=False, which the layer does not compute"),
        ({"hidden_size": None}, "no field 'hidden_size'"),
        ({"hidden_size": 8.5}, "hidden_size=8.5, but must have an integer"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"num_key_value_heads": 1}, r"k_proj.weight has shape \(8, 8\), but must be \(4, 8\)"),
        ({"num_hidden_layers": 1}, "layer=1 must be an integer from 0 to 0"),
        ({"model_type": "qwen3"}, r"has shape \(8, 8\)"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked"]}, "'chunked' for layer 1"),
        ({"model_type": "mistral", "layer_types": ["full_attention", "full_attention"]}, "layer_types="),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 9.0}, "attn_logit_softcapping=9.0"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        (
            {"model_type": "deepseek_v3", "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "kv_lora_rank": 4,
             "v_head_dim": 4, "max_position_embeddings": 16, "rope_parameters": {
                 "rope_type": "yarn", "original_max_position_embeddings": 8, "mscale_all_dim": 0.7}},
            "mscale_all_dim=0.7 and factor=None, which must be a number",
        ),
        ({"model_type": "t5"}, "part=None of a t5 must be 'encoder', 'decoder', 'cross'"),
    ],
)  # fmt: skip
def test_what_the_layer_does_not_compute_is_refused_by_name(config, words):
    with pytest.raises(ValueError, match=words):
        from_transformers(LLAMA | config, llama_tensors(), layer=1)


def test_left_over_tensors_wrong_parts_and_wrong_types_are_named():
    name = "model.layers.1.self_attn."
    with pytest.raises(ValueError, match=r"q_norm\.weight has no counterpart"):
        from_transformers(LLAMA, llama_tensors() | {f"{name}q_norm.weight": np.ones(4, np.float32)}, layer=1)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.weight of layer 0 is missing"):
        from_transformers(LLAMA, llama_tensors())
    with pytest.raises(ValueError, match="part='encoder' of a llama must be None"):
        from_transformers(LLAMA, llama_tensors(), layer=1, part="encoder")
    with pytest.raises(ValueError, match="part='encoder' of a gpt2 must be None, 'cross'"):
        from_transformers({"model_type": "gpt2"}, {}, part="encoder")
    with pytest.raises(
        ValueError, match=r"part='cross' needs cross-attention, but .* bert has add_cross_attention=False"
    ):
        from_transformers({"model_type": "bert"}, {}, part="cross")
    with pytest.raises(TypeError, match="config is a int"):
        from_transformers(3, llama_tensors(), layer=1)
    with pytest.raises(ValueError, match="has type int8"):
        from_transformers(LLAMA, {k: v.astype(np.int8) for k, v in llama_tensors().items()}, layer=1)
