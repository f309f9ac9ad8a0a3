"""What the page tells of: tokens, their vectors, and the weights of each stage."""

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)
from jaxattn.tasks.pronouns.report import read_report
from jaxattn.tasks.pronouns.words import PRONOUNS
from jaxattn.training.saving import load_model
from jaxattn.training.tokenizer import EOS, Tokenizer, open_tokenizer

FEWEST, MOST = 2, 24
# So many of the words that may come next are shown.
WORDS = 10
# What a run is shown on, unless told; the short one where every byte is a token.
SENTENCE, SHORT = "the old dog chased the quick fox which bit him", "the dog bit him"


class Story(NamedTuple):
    """Tokens, their vectors `(T, d_in)`, the stages' variables by name, and whether the numbers are the book's.

    Of a trained run, `layers` traces the attention of each layer, and `following` `(T, n)` holds how likely some
    `words` are to come after each token. `query` is the token that is looked at first, `best` the layer and head, and
    `found` what the run reports of them.
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
    following: Array | None = None
    words: tuple[str, ...] = ()
    query: int = 1
    best: tuple[int, int] = (0, 0)
    found: str = ""


def book_story() -> Story:
    """Return the sentence, vectors and weights of the book's chapter 3.

    Example:
        >>> from jaxattn.guide.story import book_story
        >>> book_story().tokens
        ['Your', 'journey', 'starts', 'with', 'one', 'step']
    """
    facts = json.loads((resources.files("jaxattn.guide") / "book.json").read_text())
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


def drawn_story(text: str, seed: int, most: int | None = MOST) -> Story:
    """Return a sentence of one's own, split at its spaces, with random vectors and weights.

    Raises:
        ValueError: it has fewer than 2 tokens, or more than `most`.
    """
    return _drawn(text.split(), seed, most)


def run_story(directory: str, text: str | None, seed: int, most: int | None = MOST) -> Story:
    """Return a sentence with the attention that a trained run pays, and random numbers for what it is not about.

    Raises:
        OSError: the directory cannot be read.
        ValueError: it holds no model, or the sentence has fewer than 2 tokens, or more than `most`.
    """
    model, params = load_model(directory)
    tokenizer, config = open_tokenizer(Path(directory)), model.config
    ids = tokenizer.encode(SENTENCE if text is None else text)
    if text is None and len(ids) > min(most or len(ids), config.context_length):
        ids = tokenizer.encode(SHORT)
    story = _drawn([_label(tokenizer, token) for token in ids], seed, most)
    if len(ids) > config.context_length:
        raise ValueError(
            f"the text has {len(ids)} tokens, but the run learned {config.context_length}: write a shorter --text"
        )
    logits, kept = model.apply(
        {"params": params}, jnp.array(ids), capture_intermediates=lambda module, _: module.name == "attention_norm"
    )
    blocks = [f"block_{number}" for number in range(config.num_layers)]
    attention = MultiHeadAttention(config.num_heads, config.features, use_bias=True)
    layers = tuple(
        trace(
            attention,
            {"params": params[block]["attention"]},
            kept["intermediates"][block]["attention_norm"]["__call__"][0],
        )
        for block in blocks
    )
    probabilities = jax.nn.softmax(logits)  # (T, vocab_size)
    likeliest = jax.lax.top_k(probabilities.max(0), min(WORDS, config.vocab_size))[1]
    query, best, found = _most_telling(Path(directory) / "pronouns.json", story.tokens, config.num_layers)
    return story._replace(
        run=directory,
        layers=layers,
        following=probabilities[:, likeliest],
        words=tuple(_label(tokenizer, int(token)) for token in likeliest),
        query=query,
        best=best,
        found=found,
    )


def _label(tokenizer: Tokenizer, token: int) -> str:
    """Write a token so that the white space in it is seen."""
    text = EOS if token == tokenizer.eos_token else tokenizer.decode([token])
    return text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}) if text != text.strip() or not text else text


def _most_telling(report: Path, tokens: list[str], layers: int) -> tuple[int, tuple[int, int], str]:
    """Return the token, and the layer and head, to look at first: the pronoun and who finds its noun, where told."""
    if not report.exists():
        return len(tokens) - 1, (layers - 1, 0), ""
    found = read_report(report)
    layer, head = found.best_head
    words = (
        f"Here an arc means something. Asked for him or her, the model is right in {found.accuracy:.1%} of sentences "
        f"whose pair of noun and verb it never saw; the word before alone gives {found.bigram:.1%}. At that word it "
        "decides who is meant. At the pronoun it looks the animal up once more, for what that was doing may come next: "
        f"head {head} of layer {layer} pays the noun {found.attention.max():.2f} of its attention, on average over "
        "them."
    )
    pronouns = [number for number, token in enumerate(tokens) if token in PRONOUNS]
    return pronouns[-1] if pronouns else len(tokens) - 1, (layer, head), words


def _drawn(tokens: list[str], seed: int, most: int | None) -> Story:
    if len(tokens) < FEWEST:
        raise ValueError(f"the text has {len(tokens)} tokens, but the page shows {FEWEST} to {MOST}: write two words")
    if most is not None and len(tokens) > most:
        raise ValueError(
            f"the text has {len(tokens)} tokens, but the page shows {FEWEST} to {MOST}: shorten it, or draw longer "
            "ones with --plots DIR"
        )
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
