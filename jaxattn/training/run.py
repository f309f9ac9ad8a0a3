"""A whole run: text in, a trained model and a verdict out."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT
from jaxattn.training.config import TrainConfig
from jaxattn.training.progress import Progress, printable, say
from jaxattn.training.saving import prepare_directory, save_model
from jaxattn.training.step import TrainState, init_state, make_optimizer, make_step, next_token_loss
from jaxattn.training.text import Corpus, batch, bigram_loss, load_corpus

MARGIN = 0.05  # nats by which the held-out loss must fall before a run counts as having learned
EVALUATION_BATCHES = 16


class Losses(NamedTuple):
    """Mean losses over fixed batches, in nats for a byte."""

    train: float
    held_out: float


class Outcome(NamedTuple):
    """What came of a run."""

    before: Losses
    after: Losses
    bigram: float
    tokens_per_second: float
    steps: int
    interrupted: bool

    @property
    def learned(self) -> bool:
        """Whether the held-out loss fell by at least the margin; a NaN did not."""
        return self.before.held_out - self.after.held_out >= MARGIN


def train(config: TrainConfig) -> Outcome:
    """Train a byte-level GPT, say how it goes, and save it if the configuration names a directory.

    Args:
        config: what to train on, for how long, with which sizes.

    Returns:
        The losses before and after, on fixed batches of both parts of the text.

    Raises:
        OSError: a text cannot be read, or the directory cannot be written.
        ValueError: there is too little text.
    """
    directory = None if config.out is None else prepare_directory(config.out)
    corpus = load_corpus(config.text, config.context_length)
    model = GPT(config.model)
    init_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = make_optimizer(config.steps, config.learning_rate)
    state = init_state(model, optimizer, init_key)
    _introduce(config, state, corpus)

    fixed = _fixed_batches(config, corpus)
    evaluate = _make_evaluation(model, fixed)
    before = evaluate(state.params)
    with Progress(config.steps, config.batch_size * config.context_length) as progress:
        state = _run_steps(config, make_step(model, optimizer, step_key), state, corpus.train, progress)
    steps = int(state.step)
    if directory is not None:
        save_model(directory, config.model, state.params)
    outcome = Outcome(
        before=before,
        after=evaluate(state.params),
        bigram=bigram_loss(corpus.train, fixed[1]),
        tokens_per_second=progress.tokens_per_second,
        steps=steps,
        interrupted=steps < config.steps,
    )
    prompt = fixed[1][0, 0, :32]
    sample = generate(model, state.params, jnp.asarray(prompt), 200, key=sample_key, temperature=0.8)
    _report(outcome, printable(prompt), printable(sample), directory)
    return outcome


def _fixed_batches(config: TrainConfig, corpus: Corpus) -> list[np.ndarray]:
    """Batches to measure on, before and after: `(EVALUATION_BATCHES, B, context_length + 1)` of either part."""
    return [
        np.stack(
            [
                batch(text, config.batch_size, config.context_length + 1, (config.seed, 0, part, number))
                for number in range(EVALUATION_BATCHES)
            ]
        )
        for part, text in enumerate(corpus)
    ]


def _make_evaluation(model: GPT, fixed: list[np.ndarray]) -> Callable[[Any], Losses]:
    @jax.jit
    def mean_loss(params: Any, batches: Array) -> Array:
        return jax.lax.map(lambda tokens: next_token_loss(model, params, tokens), batches).mean()

    return lambda params: Losses(*(float(mean_loss(params, jnp.asarray(batches))) for batches in fixed))


def _run_steps(
    config: TrainConfig,
    step: Callable[[TrainState, Array], tuple[TrainState, Array]],
    state: TrainState,
    text: np.ndarray,
    progress: Progress,
) -> TrainState:
    with _stop_signals() as stopped:
        for count in range(1, config.steps + 1):
            tokens = batch(text, config.batch_size, config.context_length + 1, (config.seed, count))
            state, loss = step(state, jnp.asarray(tokens))
            progress.update(count, loss)
            if stopped():
                break
    return state


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Let the step in progress end on SIGINT and SIGTERM, so that what was learned is saved."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda number, _: seen.append(number)) for number in numbers]
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _introduce(config: TrainConfig, state: TrainState, corpus: Corpus) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    text = ", ".join(config.text) or "the source of Python's standard library"
    say(f"text       {text}: {len(corpus.train):,} bytes to learn from, {len(corpus.held_out):,} held out")
    say(f"model      GPT, {config.layers} layers, {config.heads} heads, width {config.width}, {count:,} parameters")
    say(f"device     {jax.devices()[0].platform} ({jax.devices()[0].device_kind}), jax {jax.__version__}")


def _report(outcome: Outcome, prompt: str, sample: str, directory: Path | None) -> None:
    def loss(nats: float) -> str:
        return f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per byte"

    say()
    for name, before, after in zip(("training", "held-out"), outcome.before, outcome.after, strict=True):
        say(f"{name} loss before   {loss(before)}")
        say(f"{name} loss after    {loss(after)}")
    say(f"bigram's held-out loss {loss(outcome.bigram)}, the yardstick: counted on the same text")
    say(f"{outcome.tokens_per_second:,.0f} tokens/s on {jax.devices()[0].platform}")
    say(f"\nsample, after the held-out text {prompt!r}:\n{sample}\n")
    if directory is not None:
        say(f"saved in {directory}: python scripts/generate.py {directory}")
    if outcome.interrupted:
        say(f"stopped after {outcome.steps} steps, as asked")
    fall = outcome.before.held_out - outcome.after.held_out
    verdict = "went down" if outcome.learned else "did not go down"
    say(f"The held-out loss {verdict}: it fell by {fall:.4f} nats, and {MARGIN} is what counts.")
