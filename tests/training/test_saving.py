import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.training.saving import load_model, prepare_directory, save_model

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


def lengthen(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_layers": 2}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_configuration, "config.json is not the configuration"),
        (shorten, "model.safetensors is damaged"),
        (widen, r"tensor positions is \(8, 4\).*\(9, 4\)"),
        (lengthen, "tensor block_1.* is missing"),
    ],
)
def test_a_damaged_directory_is_named(tmp_path, change, words):
    save_model(tmp_path, CONFIG, PARAMS)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


def test_a_directory_without_a_model_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare_directory(str(tmp_path / "file"))
