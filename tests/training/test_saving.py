import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.training.saving import load_model, load_run, prepare_directory, save_model
from jaxattn.training.tokenizer import learn_bpe

CONFIG = GPTConfig(256, 8, 1, 2, 4)
PARAMS = GPT(CONFIG).init(jax.random.key(0), jnp.zeros(8, jnp.int32))["params"]


def test_a_saved_model_loads_with_the_same_parameters(tmp_path):
    save_model(prepare_directory(str(tmp_path / "a" / "b")), CONFIG, PARAMS)
    model, params = load_model(tmp_path / "a" / "b")
    assert model.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]


def damage_configuration(path):
    (path / "config.json").write_text('{"vocab_size": 256}')


def shorten(path):
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def widen(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"context_length": 9}))


def lengthen(path, num_layers=2):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_layers": num_layers}))


def lengthen_without_end(path):
    lengthen(path, 10**9)  # would take days to describe


def enlarge(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": 10**30}))


def nest(path):
    (path / "config.json").write_text("[" * 100_000)


def put_nan(path):
    broken = jax.tree.map(lambda array: array.at[(0,) * array.ndim].set(jnp.nan), PARAMS)
    save_model(path, CONFIG, broken)


def narrow(path):
    save_model(path, CONFIG, jax.tree.map(lambda array: array.astype(jnp.float16), PARAMS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_configuration, "config.json is not the configuration"),
        (shorten, "model.safetensors is damaged"),
        (widen, r"tensor positions is \(8, 4\).*\(9, 4\)"),
        (lengthen, "tensor block_1.* is missing"),
        (lengthen_without_end, "tensor block_1 is missing, but config.json says 1000000000 layers"),
        (enlarge, r"tensor embedding\.embedding is \(256, 4\)"),
        (nest, "nested too deeply"),
        (put_nan, r"tensor \S+ holds NaN or infinity"),
        (narrow, "is float16, but must be float32"),
    ],
)
def test_a_damaged_directory_is_named(tmp_path, change, words):
    save_model(tmp_path, CONFIG, PARAMS)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


@pytest.fixture(scope="module")
def run_with_tokenizer(tmp_path_factory):
    """The directory of a run with a learned tokenizer of 300 tokens, and another tokenizer of 300 tokens."""
    directory = tmp_path_factory.mktemp("run")
    for name, text in ("tokenizer.json", "the old dog chased the quick fox\n"), ("other.json", "0123456789 9876\n"):
        (directory / "text").write_text(text * 50)
        (directory / name).write_text(learn_bpe([directory / "text"], 270))
    config = GPTConfig(270, 8, 1, 2, 4)
    save_model(directory, config, GPT(config).init(jax.random.key(0), jnp.zeros(8, jnp.int32))["params"])
    return directory


def test_a_run_loads_with_its_tokenizer(run_with_tokenizer):
    model, _, tokenizer = load_run(run_with_tokenizer)
    assert tokenizer.vocab_size == model.config.vocab_size == 270


@pytest.mark.parametrize("of_version_0_1_0", [False, True])
@pytest.mark.parametrize("other", [None, "other.json"])
def test_a_run_without_its_tokenizer_or_with_another_is_refused(run_with_tokenizer, tmp_path, other, of_version_0_1_0):
    directory = shutil.copytree(run_with_tokenizer, tmp_path / "run")
    (directory / "tokenizer.json").unlink()
    if other:
        (directory / other).rename(directory / "tokenizer.json")
    words = r"tokenizer\.json, with which the model was trained, is (missing|another one)"
    if of_version_0_1_0:
        content = json.loads((directory / "config.json").read_text())
        del content["tokenizer"], content["step"]
        (directory / "config.json").write_text(json.dumps(content))
        words = r"a model of 270 tokens, but bytes, for lack of tokenizer\.json, has 256"
        if other:
            return  # nothing tells tokenizers of one size apart
    with pytest.raises(ValueError, match=words):
        load_run(directory)


def test_a_run_of_bytes_with_a_tokenizer_is_refused(run_with_tokenizer, tmp_path):
    save_model(tmp_path, CONFIG, PARAMS)
    load_run(tmp_path)
    shutil.copy(run_with_tokenizer / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match=r"was trained on bytes, but there is a tokenizer\.json: remove that"):
        load_run(tmp_path)


def test_a_directory_without_a_model_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no trained model, as there is no config\.json in it"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare_directory(str(tmp_path / "file"))
