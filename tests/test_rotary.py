"""Rotary positions and latent attention, compared with transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw

from jaxattn import LatentAttention, Rotary
from jaxattn.rotary import LinearScaling, Llama3Scaling, YarnScaling, rotate

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra peers")
transformers = pytest.importorskip("transformers", reason="compares with transformers: install the extra peers")

OURS = {
    "default": None,
    "linear": LinearScaling(4.0),
    "llama3": Llama3Scaling(8.0, 1.0, 4.0, 32),
    "yarn": YarnScaling(4.0, 32),
    "yarn, not truncated": YarnScaling(4.0, 32, truncate=False, attention_factor=1.3),
}
THEIRS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, not truncated": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                            "truncate": False, "attention_factor": 1.3},
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_scaled_rotations_are_those_of_transformers(name):
    from transformers.models.llama import modeling_llama

    parameters = THEIRS[name] | {"rope_theta": 1000.0}
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, max_position_embeddings=128, rope_parameters=parameters
    )
    (heads,) = draw(0, (2, 100, 2, 16))
    theirs = torch.from_numpy(np.asarray(heads).copy()).transpose(1, 2)
    cosine, sine = modeling_llama.LlamaRotaryEmbedding(config)(theirs, torch.arange(100)[None])
    expected, _ = modeling_llama.apply_rotary_pos_emb(theirs, theirs, cosine, sine)
    came = rotate(heads, jnp.arange(100), Rotary(1000.0, scaling=OURS[name]))
    np.testing.assert_allclose(came, expected.transpose(1, 2).numpy(), atol=2e-5)


def test_a_part_of_the_width_and_neighbouring_pairs():
    (heads,) = draw(0, (9, 2, 8))
    half = rotate(heads, jnp.arange(9), Rotary(width=4))
    np.testing.assert_array_equal(half[..., 4:], heads[..., 4:])
    np.testing.assert_allclose(half[..., :4], rotate(heads[..., :4], jnp.arange(9)), atol=1e-6)
    apart = jnp.array([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved = rotate(heads, jnp.arange(9), Rotary(interleaved=True))
    np.testing.assert_allclose(interleaved[..., apart], rotate(heads[..., apart], jnp.arange(9)), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rotary(width=3), "width=3 must be even"),
        (lambda: Rotary(base=0.5), "base=0.5 must be above 1"),
        (lambda: rotate(jnp.ones((3, 1, 2)), jnp.arange(3), Rotary(width=4)), "rotates more: write width=2"),
        (lambda: LinearScaling(0.0), "factor=0.0 must be above 0"),
        (lambda: Llama3Scaling(8.0, 4.0, 1.0, 32), "low_frequency=4.0 must be below"),
        (lambda: YarnScaling(8.0, 32, 1.0, 2.0), "beta_slow=2.0 must be below"),
    ],
)
def test_bad_fields_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("query_width", [None, 5])
def test_latent_attention_is_deepseeks(query_width):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    config = transformers.DeepseekV3Config(
        hidden_size=8, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=query_width, kv_lora_rank=6,
        qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = deepseek.DeepseekV3Attention(config, 0)
    state = {name: jnp.asarray(tensor.detach().numpy()) for name, tensor in theirs.state_dict().items()}
    up = state["kv_b_proj.weight"].T.reshape(6, 3, 7)
    params = {
        "kv_down": {"kernel": state["kv_a_proj_with_mqa.weight"].T},
        "kv_norm": {"scale": state["kv_a_layernorm.weight"]},
        "key_up": {"kernel": up[..., :4].reshape(6, 12)},
        "value_up": {"kernel": up[..., 4:].reshape(6, 9)},
        "out": {"kernel": state["o_proj.weight"].T},
    }
    if query_width is None:
        params["query"] = {"kernel": state["q_proj.weight"].T}
    else:
        params |= {
            "query_down": {"kernel": state["q_a_proj.weight"].T},
            "query_norm": {"scale": state["q_a_layernorm.weight"]},
            "query_up": {"kernel": state["q_b_proj.weight"].T},
        }
    (x,) = draw(0, (2, 10, 8))
    tensor = torch.from_numpy(np.asarray(x).copy())
    embeddings = deepseek.DeepseekV3RotaryEmbedding(config)(tensor, torch.arange(10)[None])
    mask = torch.triu(torch.full((10, 10), -torch.inf), 1)[None, None]
    expected = theirs(tensor, position_embeddings=embeddings, attention_mask=mask)[0].detach().numpy()
    rotary = Rotary(100.0, interleaved=True)
    layer = LatentAttention(3, 8, 6, 4, 2, 3, query_width, rotary=rotary, cache_length=10)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)
    decoded, _ = layer.apply({"params": params}, x, decode=True, mutable=["cache"])
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
