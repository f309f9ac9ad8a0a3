"""The heads of a GPT-2: its attention weights on a text, and how much each head is an induction head."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.guide.story import MAX_TOKENS, Story, random_numbers
from jaxattn.guide.trained import SENTENCE, next_words_of, token_label
from jaxattn.models.command import open_gpt2
from jaxattn.models.gpt import GPT
from jaxattn.tasks.reports import largest

# A random sequence of so many tokens, repeated once; scores are means over so many sequences.
INDUCTION_TOKENS, INDUCTION_SEQUENCES = 25, 4
# Bytes of the page for the weights of one section.
MAX_BYTES = 700_000


class GPT2Heads(NamedTuple):
    """What the page shows of a GPT-2.

    Args:
        tokens: the text.
        weights: `(layers, H, T, T)`, its attention weights.
        repeated_tokens: a random sequence, twice.
        repeated_weights: `(layers, H, 2n, 2n)`, the attention weights of the repeated sequence.
        induction: `(layers, H)`, the induction score of each head.
        measured: tokens of each sequence, before it is repeated, and number of sequences of the score.
    """

    tokens: list[str]
    weights: np.ndarray
    repeated_tokens: list[str]
    repeated_weights: np.ndarray
    induction: np.ndarray
    measured: tuple[int, int]

    @property
    def best_head(self) -> tuple[int, int]:
        """The layer and head with the largest induction score."""
        return largest(self.induction)


def gpt2_story(directory: str, text: str | None, seed: int) -> Story:
    """Read a GPT-2 and compute its attention on a text; what does not depend on the model is random.

    Raises:
        OSError: the directory cannot be read.
        ValueError: it holds no GPT-2, or the text has fewer than 2 tokens, or more than the page has room for.
    """
    model, params, tokenizer = open_gpt2(directory)
    config = model.config
    room = min(config.context_length, MAX_TOKENS, _most_tokens(config.num_layers * config.num_heads))
    ids = tokenizer.encode(SENTENCE if text is None else text)
    ids = ids[:room] if text is None else ids
    if len(ids) > room:
        raise ValueError(
            f"the text has {len(ids)} tokens, but for {config.num_layers} layers of {config.num_heads} heads the page "
            f"shows up to {room}: write a shorter --text"
        )
    story = random_numbers([token_label(tokenizer, token) for token in ids], seed, None)
    logits, weights = _weights(model, params, jnp.array(ids)[None])
    random = np.random.default_rng(seed)
    n = min(INDUCTION_TOKENS, config.context_length // 2)
    sequences = _random_sequences(random, tokenizer.vocab_size, tokenizer.eos_token, n)
    shown = sequences[0, : min(n, room // 2)]
    heads = GPT2Heads(
        story.tokens,
        np.asarray(weights[:, 0]),
        [token_label(tokenizer, int(token)) for token in np.tile(shown, 2)],
        np.asarray(_weights(model, params, np.tile(shown, 2)[None])[1][:, 0]),
        induction_scores(model, params, sequences),
        (n, len(sequences)),
    )
    next_words = next_words_of(tokenizer, jax.nn.softmax(logits[0]))
    return story._replace(run=directory, gpt2=heads, next_words=next_words, query=len(ids) - 1)


def induction_scores(model: GPT, params: Any, sequences: np.ndarray) -> np.ndarray:
    """Measure how much each head attends to the token after the previous occurrence of its token.

    Args:
        model: its context has room for 2n tokens.
        params: its parameters.
        sequences: `(N, n)`, in each of which all tokens differ. They are repeated, so that each token of the second
            half has occurred once, n tokens before.

    Returns:
        `(layers, H)`: the mean weight, from 0 to 1, that the second half gives to what followed n tokens before.

    References:
        Olsson et al. 2022, "In-context Learning and Induction Heads".
    """
    n = sequences.shape[1]
    weights = _weights(model, params, np.tile(sequences, (1, 2)))[1]  # (layers, N, H, 2n, 2n)
    queries = np.arange(n, 2 * n)
    return np.asarray(weights[..., queries, queries - n + 1], np.float64).mean(axis=(1, 3))


def _random_sequences(random: np.random.Generator, vocab_size: int, eos_token: int | None, n: int) -> np.ndarray:
    """Draw sequences of different tokens `(INDUCTION_SEQUENCES, n)`."""
    tokens = np.delete(np.arange(vocab_size), [] if eos_token is None else [eos_token])
    return np.stack([random.choice(tokens, min(n, len(tokens)), replace=False) for _ in range(INDUCTION_SEQUENCES)])


def _most_tokens(heads: int) -> int:
    """Return how many tokens fit on the page: float32 in base64, 4 · 4 / 3 bytes for each weight."""
    return max(2, int((MAX_BYTES / (heads * 16 / 3)) ** 0.5))


@functools.partial(jax.jit, static_argnums=0)
def _weights(model: GPT, params: Any, tokens: Any) -> tuple[Array, Array]:
    """Return logits `(N, T, vocab_size)` and attention weights `(layers, N, H, T, T)`."""
    logits, state = model.apply({"params": params}, tokens, mutable=["intermediates"])
    blocks = (state["intermediates"][f"block_{number}"] for number in range(model.config.num_layers))
    return logits, jnp.stack([block["attention"]["weights"][0] for block in blocks])
