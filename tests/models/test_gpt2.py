"""GPT-2's files, written by the test in Hugging Face's format and compared with transformers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxattn import generate, load_gpt2

CONFIG = {"model_type": "gpt2", "vocab_size": 17, "n_positions": 24, "n_layer": 2, "n_head": 2, "n_embd": 8}


def tensors(seed=0, prefix="transformer."):
    rng, E = np.random.default_rng(seed), CONFIG["n_embd"]
    shapes = {"wte.weight": (17, E), "wpe.weight": (24, E), "ln_f.weight": (E,), "ln_f.bias": (E,)}
    for layer in range(2):
        for name, shape in {
            "ln_1.weight": (E,), "ln_1.bias": (E,), "ln_2.weight": (E,), "ln_2.bias": (E,),
            "attn.c_attn.weight": (E, 3 * E), "attn.c_attn.bias": (3 * E,),
            "attn.c_proj.weight": (E, E), "attn.c_proj.bias": (E,),
            "mlp.c_fc.weight": (E, 4 * E), "mlp.c_fc.bias": (4 * E,),
            "mlp.c_proj.weight": (4 * E, E), "mlp.c_proj.bias": (E,),
        }.items():  # fmt: skip
            shapes[f"h.{layer}.{name}"] = shape
    return {prefix + name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path):
    def written(weights=None, config=None):
        save_file(tensors() if weights is None else weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
        return tmp_path

    return written


def test_logits_and_generated_tokens_equal_those_of_transformers(write):
    transformers = pytest.importorskip("transformers", reason="compares with transformers: install the extra peers")
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    directory = write()
    theirs = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    model, params = load_gpt2(directory)
    tokens = np.random.default_rng(0).integers(0, 17, (3, 11))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(tokens)), expected, atol=1e-4)
    actual = generate(model, params, jnp.asarray(tokens[:, :4]), 20, temperature=0)
    prompt = torch.from_numpy(tokens[:, :4])
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    np.testing.assert_array_equal(actual, expected[:, 4:].numpy())


def test_prefixes_tied_heads_and_stored_masks_make_no_difference(write):
    model, params = load_gpt2(write())
    assert model.config.num_layers == 2
    bare = tensors(prefix="")
    extra = {"lm_head.weight": bare["wte.weight"], "h.0.attn.bias": np.ones((1, 1, 24, 24), np.float32)}
    _, same = load_gpt2(write(bare | extra))
    np.testing.assert_array_equal(
        params["block_0"]["attention"]["key"]["kernel"], bare["h.0.attn.c_attn.weight"][:, 8:16]
    )
    np.testing.assert_array_equal(same["block_1"]["expand"]["kernel"], params["block_1"]["expand"]["kernel"])
    np.testing.assert_array_equal(same["block_1"]["expand"]["kernel"], bare["h.1.mlp.c_fc.weight"])


def without(name):
    return {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (without("transformer.h.1.mlp.c_fc.bias"), CONFIG, "h.1.mlp.c_fc.bias is missing"),
        (tensors() | {"transformer.h.2.ln_1.bias": np.ones(8)}, CONFIG, "h.2.ln_1.bias has no counterpart"),
        (
            tensors() | {"transformer.wpe.weight": np.ones((23, 8))},
            CONFIG,
            r"wpe.weight has shape \(23, 8\).*\(24, 8\)",
        ),
        (tensors() | {"lm_head.weight": np.ones((17, 8))}, CONFIG, "lm_head.weight differs"),
        (None, CONFIG | {"model_type": "llama"}, "describes a llama"),
        (None, CONFIG | {"activation_function": "relu"}, "activation_function='relu'"),
        (None, CONFIG | {"n_inner": 5}, "n_inner=5"),
        (None, CONFIG | {"n_head": 3}, "features=8"),
        (None, {"model_type": "gpt2"}, "has no field 'vocab_size'"),
    ],
)
def test_other_architectures_and_wrong_tensors_are_named(write, weights, config, words):
    with pytest.raises(ValueError, match=words):
        load_gpt2(write(weights, config))


def test_damaged_and_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_gpt2(tmp_path)
    directory = write()
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_gpt2(directory)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_gpt2(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_gpt2(directory)
