"""A story told by a trained model: the attention of each of its layers, and its predictions."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.guide.matrix_plot import visible
from jaxattn.guide.story import MAX_TOKENS, Story, random_numbers
from jaxattn.guide.trace import Trace, trace
from jaxattn.layer import AttentionLayer
from jaxattn.models.gpt import GPT
from jaxattn.tasks.pronouns.report import read_report
from jaxattn.tasks.pronouns.words import PRONOUNS
from jaxattn.training.saving import load_run
from jaxattn.training.tokenizer import EOS, Tokenizer

NUM_NEXT_WORDS = 5
# The sentence without --text, and a shorter one for models that read bytes.
SENTENCE, SHORT_SENTENCE = "the old dog chased the quick fox which bit him", "the dog bit him"


def trained_story(directory: str, text: str | None, seed: int, max_tokens: int | None = MAX_TOKENS) -> Story:
    """Trace a trained model on a text; what does not depend on the model is random.

    Raises:
        OSError: the directory cannot be read.
        ValueError: it holds no model, or the text has fewer than 2 tokens, or more than `max_tokens`.
    """
    model, params, tokenizer = load_run(directory)
    config = model.config
    ids = tokenizer.encode(SENTENCE if text is None else text)
    if text is None and len(ids) > min(max_tokens or len(ids), config.context_length):
        ids = tokenizer.encode(SHORT_SENTENCE)
    story = random_numbers([token_label(tokenizer, token) for token in ids], seed, max_tokens)
    if len(ids) > config.context_length:
        raise ValueError(
            f"the text has {len(ids)} tokens, but the model's context has {config.context_length}: write a shorter "
            "--text"
        )
    logits, layers = trace_layers(model, params, jnp.array(ids))
    probabilities = jax.nn.softmax(logits)  # (T, vocab_size)
    story = story._replace(
        run=directory,
        layers=layers,
        next_words=next_words_of(tokenizer, probabilities),
        query=len(ids) - 1,
        best_head=(config.num_layers - 1, 0),
    )
    report = Path(directory) / "pronouns.json"
    return _with_report(story, report) if report.exists() else story


def next_words_of(tokenizer: Tokenizer, probabilities: Array) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Name the likeliest next words after each token, of probabilities `(T, vocab_size)`."""
    likely = jax.lax.top_k(probabilities, min(NUM_NEXT_WORDS, probabilities.shape[-1]))  # (T, 5) each
    return tuple(
        tuple((token_label(tokenizer, int(token)), float(p)) for p, token in zip(*row, strict=True))
        for row in zip(*likely, strict=True)
    )


def trace_layers(model: GPT, params: Any, tokens: Array) -> tuple[Array, tuple[Trace, ...]]:
    """Return the logits, and a trace of each layer's attention, on its inputs and parameters."""
    logits, state = model.apply(
        {"params": params}, tokens, capture_intermediates=lambda module, _: module.name == "attention_norm"
    )
    attention = AttentionLayer(model.config.num_heads, model.config.features, **model.config.attention)
    traces = []
    for block in (f"block_{number}" for number in range(model.config.num_layers)):
        (inputs,) = state["intermediates"][block]["attention_norm"]["__call__"]
        traces.append(trace(attention, {"params": params[block]["attention"]}, inputs))
    return logits, tuple(traces)


def _with_report(story: Story, file: Path) -> Story:
    """Choose the last pronoun and the head that attends to its noun, and report how well that works."""
    report = read_report(file)
    layer, head = report.best_head
    noun, before = report.attention.max(), report.attention_before[layer, head]
    summary = (
        f"Asked to choose between him and her, the model is right in {report.accuracy:.1%} of sentences whose pair of "
        f"noun and verb it never saw; the previous word alone gives {report.bigram:.1%}. At the pronoun, head {head} "
        f"of layer {layer} gives the noun {noun:.2f} of its attention, averaged over these sentences; one word earlier "
        f"it gives {before:.2f}."
    )
    pronouns = [number for number, token in enumerate(story.tokens) if token in PRONOUNS]
    return story._replace(query=pronouns[-1] if pronouns else story.query, best_head=(layer, head), summary=summary)


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """Decode a token so that its white space is visible."""
    text = EOS if token == tokenizer.eos_token else tokenizer.decode([token])
    if text != text.strip() or not text:
        text = text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"})
    return visible(text)
