"""Train the same model once whole and once without each part, to see what the parts are for: `--ablate`."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxattn.extras import require
from jaxattn.files import read_json, write_whole
from jaxattn.models.gpt import GPT, Part
from jaxattn.tasks import Data, find_task
from jaxattn.training.batches import Batch, loss_mask
from jaxattn.training.bigram import bigram_loss
from jaxattn.training.comparison import (
    DROPOUT,
    PAGE,
    WHOLE,
    Comparison,
    Result,
    comparison_table,
    draw_comparison,
    label,
    sentences,
    write_page,
)
from jaxattn.training.config import TrainConfig
from jaxattn.training.data import open_data
from jaxattn.training.devices import parse_mesh
from jaxattn.training.directory import FILE as RUN
from jaxattn.training.evaluation import fixed_batches
from jaxattn.training.fingerprints import changes
from jaxattn.training.journal import Journal
from jaxattn.training.progress import Progress, say
from jaxattn.training.run import Run
from jaxattn.training.sample import choose_prompt
from jaxattn.training.saving import prepare_directory
from jaxattn.training.sharding import gather_to_main_process
from jaxattn.training.signals import catch_stop_signals

FILE = "ablation.json"
PARTS = ("causal", "scale", "heads", "dropout", "positions")
# The points on each curve, about, and the length and temperature of the samples.
POINTS, SAMPLE_TOKENS, TEMPERATURE = 20, 60, 0.8


def check_ablation(config: TrainConfig, parts: Sequence[str], resumes: bool) -> None:
    """Check that these parts can be left out of this run.

    Raises:
        ValueError: they cannot; nothing has been written.
    """
    if resumes:
        raise ValueError("--ablate goes on with the models that are not finished by itself: leave --resume out")
    if config.out is None:
        raise ValueError("--ablate draws its figure into a directory: name one with --out DIR")
    if config.tensorboard:
        raise ValueError("--ablate writes no TensorBoard scalars: leave --tensorboard out")
    if "heads" in parts and config.heads == 1:
        raise ValueError("--ablate heads compares with one head, but the model has one already: write --heads 4")
    if "heads" in parts and parse_mesh(config.mesh).get("model", 1) > 1:
        raise ValueError(f"--ablate heads cannot split one head as --mesh {config.mesh} does: leave model= out")
    require("matplotlib", extra="train")


def changed(config: TrainConfig, part: str) -> tuple[TrainConfig, tuple[Part, ...]]:
    """Return the configuration without a part, and the parts that the model itself leaves out."""
    if part == "heads":
        config = dataclasses.replace(config, heads=1)
    if part == "dropout":
        config = dataclasses.replace(config, dropout=0.0 if config.dropout else DROPOUT)
    points = max(1, config.steps // POINTS)
    config = dataclasses.replace(config, out=None, save_every=points)
    return config, tuple(name for name in get_args(Part) if name == part)


def ablate(config: TrainConfig, parts: Sequence[str]) -> int:
    """Train the whole model and one without each part, except those finished before; return the exit status.

    After each model, the results so far are saved in `config.out`: the numbers, the figure and a page.

    Raises:
        OSError: the directory cannot be written.
        ValueError: it holds something else, or a part cannot be left out.
        DivergedError: the loss of a model became NaN or infinite; those that are finished are saved.
    """
    if jax.process_count() > 1:
        raise ValueError("--ablate trains in one process: start it without --coordinator, SLURM and Open MPI")
    directory = prepare_directory(str(config.out))
    if (directory / RUN).exists():
        raise ValueError(f"{directory} holds a training run: name another --out for --ablate")
    fingerprints = find_task(config.task).fingerprints(config)
    data, _ = open_data(dataclasses.replace(config, out=None), resume=False)
    batches = fixed_batches(data.corpus, config)
    bigram = bigram_loss(data.corpus.train, batches.held_out, data.tokenizer.vocab_size)
    prompt = data.tokenizer.decode(choose_prompt(batches.held_out))
    results = _saved_results(directory, config, fingerprints)
    comparison = Comparison(config, data.unit, bigram, prompt, results)
    with catch_stop_signals(directory, "keeps the models that are finished in") as received_signal:
        for part in dict.fromkeys((WHOLE, *parts)):
            if part not in results:
                say(f"\n{label(config, part)}")
                result = _Variant(config, part, data).result(received_signal)
                if result is None:
                    break
                results[part] = result
                _save(comparison, fingerprints, directory)
    if results:
        say(f"\n{comparison_table(comparison)}\n")
        for text in sentences(comparison):
            say(text)
        say(f"saved in {directory}: {PAGE} with the figure, these sentences and the samples")
    if received_signal():
        say("stopped, as requested: the same command continues with the models that are not finished")
        return 128 + received_signal()
    return 0


def _save(comparison: Comparison, fingerprints: list[str], directory: Path) -> None:
    results = {part: result._asdict() for part, result in comparison.results.items()}
    content = {"config": dataclasses.asdict(comparison.config), "texts": fingerprints, "results": results}
    write_whole(directory / FILE, json.dumps(content, indent=1).encode())
    draw_comparison(comparison, directory)
    write_page(comparison, directory)


def _saved_results(directory: Path, config: TrainConfig, fingerprints: list[str]) -> dict[str, Result]:
    """Return the results that an earlier call with this configuration has left in the directory."""
    file = directory / FILE
    if not file.exists():
        return {}
    try:
        content = read_json(file)
        saved = TrainConfig.of_json(content["config"])
        texts = [str(text) for text in content["texts"]]
        results = {part: Result(**result) for part, result in content["results"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, or name another --out") from error
    differences = saved.differences(config)
    if saved.steps != config.steps:
        differences.append(f"--steps {saved.steps}, not {config.steps}")
    differences += changes(texts, fingerprints, config.text)
    if differences:
        raise ValueError(f"{file} compares other models, with {', '.join(differences)}: name another --out")
    return results


class _Variant(Run):
    """The training of one of the models: saves nothing, and measures the held-out loss more often than a run."""

    def __init__(self, config: TrainConfig, part: str, data: Data) -> None:
        self._shared_data = data
        config, without = changed(config, part)
        super().__init__(config, without=without)
        self.curve: list[tuple[int, float]] = []

    def _open_data(self) -> tuple[Data, Path | None]:
        return self._shared_data, None

    def _record_held_out_loss(self, step: int, loss: float) -> None:
        self.curve.append((step, loss))

    def result(self, received_signal: Callable[[], int]) -> Result | None:
        """Train, and measure what is compared; None after a stop signal."""
        config = self.config
        self.received_signal = received_signal
        self.progress = Progress(0, config.steps, config.batch_size * config.context_length)
        with contextlib.closing(Journal(None, 0)) as self.journal, self.progress:
            self._measure_held_out_loss(0)
            self._train_steps()
        if received_signal():
            return None
        model = self.model.clone(ring=None)
        params = gather_to_main_process(self.mesh, self.state.params)
        prompt = choose_prompt(self.fixed_batches.held_out)
        keys = jax.random.split(self.sample_key, SAMPLE_TOKENS)
        tokens = np.asarray(_continue(model, params, jnp.asarray(prompt), keys))
        return Result(
            self.curve,
            self.evaluate.both(self.state.params).train,
            float(_cut_loss(model, params, self.fixed_batches.held_out)),
            self.data.tokenizer.decode(tokens),
            bigram_loss(self.data.corpus.train, Batch(tokens), self.model.config.vocab_size),
        )


@functools.partial(jax.jit, static_argnums=0)
def _continue(model: GPT, params: Any, prompt: Array, keys: Array) -> Array:
    """Draw a token for each key; the model always sees as many tokens as the prompt has, the latest, and no cache.

    So every model writes in the same way, also one without the causal mask, which cannot generate with a cache.
    """

    def draw(window: Array, key: Array) -> tuple[Array, Array]:
        logits: Any = model.apply({"params": params}, window)
        token = jax.random.categorical(key, logits[-1] / TEMPERATURE).astype(window.dtype)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(draw, prompt, keys)[1]


@functools.partial(jax.jit, static_argnums=0)
def _cut_loss(model: GPT, params: Any, batches: Batch) -> Array:
    """Return the mean loss of the next token of texts that end in the middle of the context."""
    half = max(1, model.config.context_length // 2)

    def loss_of_batch(batch: Batch) -> tuple[Array, Array]:
        tokens = batch.tokens.astype(jnp.int32)  # (B, context_length + 1)
        documents = None if batch.documents is None else batch.documents[:, :half]
        logits: Any = model.apply({"params": params}, tokens[:, :half], documents=documents)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, -1], tokens[:, half])
        counted = jnp.ones(losses.shape, bool) if batch.documents is None else loss_mask(batch.documents)[:, half - 1]
        return jnp.where(counted, losses, 0).sum(), counted.sum()

    loss, counted = jax.lax.map(loss_of_batch, jax.tree.map(jnp.asarray, batches))
    return loss.sum() / jnp.maximum(counted.sum(), 1)
