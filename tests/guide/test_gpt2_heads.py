"""A GPT-2's heads, and those that look for the token after the previous occurrence."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.guide.command import check, parser
from jaxattn.guide.gpt2 import gpt2_story, induction_scores
from jaxattn.guide.page import render_page
from jaxattn.guide.sections import make_sections
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.training.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 of random weights with a vocabulary of bytes: 2 layers of 4 heads."""
    tokenizers = pytest.importorskip("tokenizers", reason="reads GPT-2's vocabulary: install the extra train")
    from safetensors.numpy import save_file

    directory = tmp_path_factory.mktemp("gpt2")
    letters = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    sizes = {"vocab_size": 257, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 8}
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
    rng, E = np.random.default_rng(0), 8
    shapes = {"wte.weight": (257, E), "wpe.weight": (64, E), "ln_f.weight": (E,), "ln_f.bias": (E,)}
    for layer in ("h.0.", "h.1."):
        for name, inner, outer in (
            ("attn.c_attn", E, 3 * E),
            ("attn.c_proj", E, E),
            ("mlp.c_fc", E, 4 * E),
            ("mlp.c_proj", 4 * E, E),
        ):
            shapes |= {f"{layer}{name}.weight": (inner, outer), f"{layer}{name}.bias": (outer,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{layer}{name}.weight": (E,), f"{layer}{name}.bias": (E,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, directory / "model.safetensors")
    return str(directory)


@pytest.mark.slow
def test_any_layer_and_head_of_a_gpt2_is_shown(gpt2):
    story = gpt2_story(gpt2, "him and him", 0)
    text, repeated = make_sections(story)[:2]
    assert [section.id for section in (text, repeated)] == ["gpt2", "induction"]
    model, params = load_gpt2(gpt2)
    ids = jnp.array(open_tokenizer(Path(gpt2)).encode("him and him"))
    _, state = model.apply({"params": params}, ids, mutable=["intermediates"])
    for layer in "01":
        expected = state["intermediates"][f"block_{layer}"]["attention"]["weights"][0]
        np.testing.assert_allclose(text.numbers["weights"].values[f"layer={layer}"], expected, atol=1e-5)
        assert repeated.numbers["weights"].values[f"layer={layer}"].shape == (4, *(len(repeated.tokens),) * 2)
    half = len(repeated.tokens) // 2
    assert repeated.tokens[:half] == repeated.tokens[half:]
    assert len(render_page(story).encode()) < 2_000_000


@pytest.mark.slow
def test_an_induction_score_is_the_mean_weight_of_the_token_after_the_previous_occurrence():
    config = GPTConfig(20, 16, 2, 2, 8)
    model = GPT(config)
    params = model.init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"]
    sequences = np.stack([np.random.default_rng(seed).permutation(20)[:5] for seed in range(3)])
    scores = induction_scores(model, params, sequences)
    expected = np.zeros((2, 2))
    for sequence in sequences:
        tokens = [*sequence, *sequence]
        _, state = model.apply({"params": params}, jnp.array(tokens), mutable=["intermediates"])
        for layer in range(2):
            weights = np.asarray(state["intermediates"][f"block_{layer}"]["attention"]["weights"][0])
            for query in range(5, 10):
                expected[layer] += weights[:, query, tokens.index(tokens[query]) + 1] / 15
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_text_that_does_not_fit_on_the_page_is_refused(gpt2):
    with pytest.raises(ValueError, match=r"25 tokens.*2 layers of 4 heads.*up to 24.*--text"):
        gpt2_story(gpt2, "x" * 25, 0)
    with pytest.raises(ValueError, match=r"1 tokens.*two words"):
        gpt2_story(gpt2, "x", 0)
    with pytest.raises(FileNotFoundError):
        gpt2_story(gpt2 + "/no", None, 0)


@pytest.mark.parametrize("other", ["--run", "--plots"])
def test_a_gpt2_is_shown_alone(other):
    with pytest.raises(ValueError, match=f"leave {other} out"):
        check(parser().parse_args(["--gpt2", "a", other, "b"]))
