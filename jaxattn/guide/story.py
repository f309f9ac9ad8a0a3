"""What the page shows: tokens, their vectors, and the parameters of each stage."""

import json
from importlib import resources
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.guide.matrix_plot import visible
from jaxattn.guide.trace import Trace
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)

MIN_TOKENS, MAX_TOKENS = 2, 24


class Story(NamedTuple):
    """A sentence, and the numbers that the page computes from.

    Args:
        tokens: the sentence.
        inputs: the tokens' vectors `(T, d_in)`.
        trainable: variables of stage 2.
        causal: variables of stage 3.
        stacked: variables of stage 4a.
        parallel: variables of stage 4b.
        from_book: whether the numbers are the book's; otherwise they are random.
        run: directory of the trained model; the fields below describe it.
        layers: a trace of each layer's attention.
        next_words: after each token the likeliest next words, with their probabilities.
        query: the token that is chosen at first.
        best_head: the layer and head that are chosen at first.
        summary: what the run reports about them.
        gpt2: the heads of a GPT-2, in place of `layers`.
    """

    tokens: list[str]
    inputs: Array
    trainable: Any
    causal: Any
    stacked: Any
    parallel: Any
    from_book: bool
    run: str | None = None
    layers: tuple[Trace, ...] = ()
    next_words: tuple[tuple[tuple[str, float], ...], ...] = ()
    query: int = 1
    best_head: tuple[int, int] = (0, 0)
    summary: str = ""
    gpt2: Any = None  # a `GPT2Heads`, or None

    @property
    def input_note(self) -> str:
        """Where the token vectors come from."""
        return "given by the book, as the vector of its word" if self.from_book else "drawn at random for its word"

    @property
    def parameter_note(self) -> str:
        """Where the parameters come from."""
        return "a parameter; here it is the book's" if self.from_book else "a parameter; here it is drawn at random"


def book_story() -> Story:
    """Return the sentence, vectors and parameters of the book's chapter 3.

    Example:
        >>> from jaxattn.guide.story import book_story
        >>> book_story().tokens
        ['Your', 'journey', 'starts', 'with', 'one', 'step']
    """
    facts = json.loads((resources.files("jaxattn.guide") / "book.json").read_text(encoding="utf-8"))
    parallel = _kernels(facts["parallel"], ("query", "key", "value", "out"))
    parallel["params"]["out"]["bias"] = jnp.array(facts["parallel"]["out_bias"])
    heads = [_kernels(head)["params"] for head in facts["stacked"]]
    return Story(
        facts["sentence"],
        jnp.array(facts["inputs"]),
        _kernels(facts["trainable"]),
        _kernels(facts["causal"]),
        {"params": {f"heads_{number}": head for number, head in enumerate(heads)}},
        parallel,
        from_book=True,
    )


def stages_of(story: Story) -> list[tuple[str, nn.Module, Any]]:
    """Return the name, module and variables of each stage of a story."""
    features = story.parallel["params"]["out"]["kernel"].shape[0]
    heads = len(story.stacked["params"])
    return [
        ("1_simple", SimpleSelfAttention(), {}),
        ("2_trainable", SelfAttention(2), story.trainable),
        ("3_causal", CausalAttention(2), story.causal),
        ("4_stacked", MultiHeadAttentionWrapper(heads, 2), story.stacked),
        ("4_parallel", MultiHeadAttention(heads, features), story.parallel),
    ]


def random_story(text: str, seed: int, max_tokens: int | None = MAX_TOKENS) -> Story:
    """Split a text at its spaces, and draw random vectors and parameters.

    Raises:
        ValueError: it has fewer than 2 tokens, or more than `max_tokens`.
    """
    return random_numbers(text.split(), seed, max_tokens)


def random_numbers(tokens: list[str], seed: int, max_tokens: int | None) -> Story:
    """Draw random vectors and parameters for tokens.

    Raises:
        ValueError: there are fewer than 2 tokens, or more than `max_tokens`.
    """
    if len(tokens) < MIN_TOKENS:
        raise ValueError(
            f"the text has {len(tokens)} tokens, but the page shows {MIN_TOKENS} to {MAX_TOKENS}: write two words"
        )
    if max_tokens is not None and len(tokens) > max_tokens:
        raise ValueError(
            f"the text has {len(tokens)} tokens, but the page shows {MIN_TOKENS} to {MAX_TOKENS}: shorten it, or plot "
            "longer texts with --plots DIR"
        )
    tokens = [visible(token) for token in tokens]
    keys = jax.random.split(jax.random.key(seed), 5)
    # Rounded to two places, as the book's vectors are, so that a reader can follow by hand.
    inputs = jnp.asarray(np.round(np.asarray(jax.random.uniform(keys[0], (len(tokens), 3))), 2))
    modules = SelfAttention(2), CausalAttention(2), MultiHeadAttentionWrapper(2, 2), MultiHeadAttention(2, 2)
    trainable, causal, stacked, parallel = (
        module.init(key, inputs) for module, key in zip(modules, keys[1:], strict=True)
    )
    return Story(tokens, inputs, trainable, causal, stacked, parallel, from_book=False)


def _kernels(facts: dict[str, Any], names: tuple[str, ...] = ("query", "key", "value")) -> dict[str, Any]:
    return {"params": {name: {"kernel": jnp.array(facts[name])} for name in names}}
