import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.tasks.copy import report as report_module
from jaxattn.tasks.copy.report import format_report, report_copying
from jaxattn.tasks.copy.sequences import LENGTH, NUMBER, WORDS, make_sequences
from jaxattn.training.config import preset
from jaxattn.training.run import Run

TRAIN, HELD_OUT = (make_sequences(1, 2000, held_out=held_out) for held_out in (False, True))


def test_every_sequence_is_random_letters_and_the_same_letters_again():
    for tokens in HELD_OUT[:100]:
        words = [WORDS[token] for token in tokens]
        assert words[:NUMBER] == words[NUMBER + 1 : -1]
        assert all(word.isalpha() and len(word) == 1 for word in words[:NUMBER])
        assert (words[NUMBER], words[-1]) == ("|", "<|endoftext|>")
    together = np.concatenate([TRAIN, HELD_OUT])
    assert len(np.unique(together, axis=0)) == len(together)
    np.testing.assert_array_equal(TRAIN, make_sequences(1, 2000, held_out=False))
    assert (make_sequences(2, 2000, held_out=False) != TRAIN).any()


@pytest.mark.slow
def test_the_report_equals_that_of_one_sequence_at_a_time(monkeypatch):
    monkeypatch.setattr(report_module, "BATCH", 6)
    model = GPT(GPTConfig(len(WORDS), LENGTH, 2, 3, 12))
    params = model.init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"]
    sequences = make_sequences(3, 12, held_out=True)  # two batches
    report = report_copying(model, params, sequences, TRAIN)
    apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens, mutable=["intermediates"]))
    right, attention = [], []
    for tokens in sequences:
        logits, collected = jax.tree.map(np.asarray, apply(tokens))
        blocks = [collected["intermediates"][f"block_{n}"]["attention"]["weights"][0] for n in (0, 1)]
        for letter in range(NUMBER):
            right.append(logits[NUMBER + letter].argmax() == tokens[letter])
            attention.append([weights[:, NUMBER + letter, letter] for weights in blocks])
    assert report.accuracy == pytest.approx(np.mean(right))
    assert report.bigram < 0.2  # by chance 1 / 26
    np.testing.assert_allclose(report.attention, np.mean(attention, axis=0), atol=1e-5)
    layer, head = report.best_head
    assert f"layer {layer}, head {head} comes nearest to copying" in format_report(report)


@pytest.mark.slow
def test_a_model_learns_to_copy_and_a_head_that_does_it_is_found(capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax relies on them
        Run(preset("copy")).train()
    printed = capsys.readouterr().out
    accuracy = float(printed.partition("right letter in the copy")[2].split()[0])
    assert accuracy > 99
    assert "layer 0, head" in printed
    assert " copies: the letter that comes next gets 0." in printed
