"""GPT-2's files, written by the test in Hugging Face's format and compared with transformers."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxattn import generate, load_gpt2
from jaxattn.models import command
from jaxattn.training.tokenizer import bytes_tokenizer

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


def write_shards(directory, shards, weight_map=None):
    """Write dictionaries of tensors as files, with an index."""
    (directory / "config.json").write_text(json.dumps(CONFIG))
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name)
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": 0}, "weight_map": where | (weight_map or {})}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory / names[-1]


def test_sharded_files_are_read_by_their_index(write, tmp_path_factory, monkeypatch):
    _, params = load_gpt2(write())
    names = sorted(tensors())
    shards = [{name: tensors()[name] for name in names[start::3]} for start in range(3)]
    directory = tmp_path_factory.mktemp("shards")
    last = write_shards(directory, shards)
    chex.assert_trees_all_equal(load_gpt2(directory)[1], params)
    (directory / "tokenizer.json").touch()
    monkeypatch.setattr(command, "read_tokenizer", lambda file: bytes_tokenizer()._replace(vocab_size=17))
    chex.assert_trees_all_equal(command.open_gpt2(str(directory))[1], params)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"{last.name} does not exist, but model.safetensors.index.json"):
        load_gpt2(directory)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"surplus": "model-00001-of-00001.safetensors"}, "holds the tensor surplus, but it does not"),
        ({"surplus": "../model.safetensors"}, "must name files of its own directory"),
        ({"surplus": 3}, "names 3, but must name files"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_named(tmp_path, weight_map, words):
    write_shards(tmp_path, [tensors()], weight_map)
    with pytest.raises(ValueError, match=words):
        load_gpt2(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_other_floating_point_types_are_read_as_float32(write, dtype):
    _, params = load_gpt2(write({name: tensor.astype(dtype) for name, tensor in tensors().items()}))
    _, expected = load_gpt2(write({n: tensor.astype(dtype).astype(np.float32) for n, tensor in tensors().items()}))
    chex.assert_trees_all_equal(params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_integer_and_float8_tensors_are_refused_by_name_unless_they_are_no_parameters(write, tmp_path):
    name = "transformer.h.1.mlp.c_fc.weight"
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight has type int8"):
        load_gpt2(write(tensors() | {name: tensors()[name].astype(np.int8)}))
    load_gpt2(write(tensors() | {"transformer.h.0.attn.bias": np.ones((1, 1, 24, 24), bool)}))
    # A float8 tensor by hand, because NumPy has none: the length of the header, the header, the numbers.
    header = json.dumps({name: {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=f"{name} has type F8_E4M3"):
        load_gpt2(tmp_path)


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
