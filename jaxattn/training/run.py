"""A training run, from configuration to outcome: the training loop is `Run._train_steps`."""

import contextlib
import functools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.extras import require
from jaxattn.models.gpt import GPT, Part
from jaxattn.tasks import Data, find_task
from jaxattn.training.batches import Batch, make_batch, prefetch
from jaxattn.training.bigram import bigram_loss
from jaxattn.training.checkpoints import Checkpoints
from jaxattn.training.config import TrainConfig
from jaxattn.training.data import open_data
from jaxattn.training.devices import make_mesh, parse_mesh
from jaxattn.training.directory import CHECKPOINTS, saved_config
from jaxattn.training.evaluation import Evaluate, fixed_batches
from jaxattn.training.journal import Journal, draw_curve, read_journal
from jaxattn.training.memory import check_memory
from jaxattn.training.progress import Progress, say
from jaxattn.training.recipe import find_recipe
from jaxattn.training.recovery import DivergedError, check_steps, diverged, restore, write_error
from jaxattn.training.report import Outcome, Stopped, introduction, resuming, stopped, summary, verdict
from jaxattn.training.sample import (
    Sample,
    choose_prompt,
    is_sample_step,
    recorded_samples,
    sample_table,
    sample_text,
    write_samples,
)
from jaxattn.training.saving import save_model
from jaxattn.training.sharding import gather_to_main_process, make_ring, shard_batch
from jaxattn.training.signals import catch_stop_signals, received_by_any_process
from jaxattn.training.step import Metrics, choose_microbatches, init_state, make_step


class Run:
    """One training run; the methods stand in the order in which they are called.

    Args:
        config: what to train on, for how long, with which sizes.
        resume: the step to resume from, LAST for the last checkpoint, None to start.
        without: parts that the model is trained without, as in `GPT`.

    Raises:
        OSError: a text cannot be read, or the directory cannot be written.
        ValueError: there is too little text, the directory holds another run, or sizes do not divide.
    """

    def __init__(self, config: TrainConfig, resume: int | None = None, without: tuple[Part, ...] = ()) -> None:
        self.config, self.resume = config, resume
        self.is_main_process = jax.process_index() == 0
        # Raise what can go wrong before anything is written.
        self.mesh = make_mesh(parse_mesh(config.mesh), config.batch_size, config.heads, config.context_length)
        check_memory(config, self.mesh)
        self.microbatches = choose_microbatches(config.batch_size, config.context_length, self.mesh, config.accumulate)
        self.steps_before = config.steps
        if resume is not None:
            check_steps(config, resume)
            self.steps_before = saved_config(str(config.out)).steps
        self._require_packages()
        self.data, self.directory = self._open_data()
        dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
        sizes = config.model(self.data.tokenizer.vocab_size)
        self.model = GPT(sizes, dtype, config.remat, make_ring(self.mesh, config.kv_heads or config.heads), without)
        init_key, self.dropout_key, self.sample_key = jax.random.split(jax.random.key(config.seed), 3)
        recipe = find_recipe(config.recipe)
        self.schedule = recipe.schedule(config.steps, config.learning_rate)
        self.optimizer = recipe.optimizer(self.schedule, self.mesh)
        self.state = init_state(self.model, self.optimizer, init_key, self.mesh, config.shard_parameters)
        self.fixed_batches = fixed_batches(self.data.corpus, config)
        self.prompt = choose_prompt(self.fixed_batches.held_out)
        self.evaluate = Evaluate(self.model, self.mesh, self.fixed_batches)
        self.samples: list[Sample] = []
        self.checkpoints = None if self.directory is None else Checkpoints(self.directory / CHECKPOINTS)

    def _require_packages(self) -> None:
        """Raise an ImportError for what is missing now, and not after training."""
        if self.config.out is not None:
            for package in ("matplotlib", "safetensors"):
                require(package, extra="train")
        if self.config.tensorboard:
            require("tensorboardX", extra="tensorboard")

    def _open_data(self) -> tuple[Data, Path | None]:
        return open_data(self.config, self.resume is not None)

    def train(self) -> Outcome | Stopped:
        """Train, save the model, and print what has been learned, or after a stop signal only how to continue.

        Raises:
            DivergedError: a loss was NaN or infinite; earlier checkpoints are intact.
            OSError: the disk is full; earlier checkpoints are intact.
            ValueError: a checkpoint is damaged.
        """
        config = self.config
        self._say(introduction(config, self.data, self.mesh, self.state.params))
        before = self.evaluate.both(self.state.params)
        self._restore_checkpoint()
        first = int(self.state.step)
        tokens_per_step = config.batch_size * config.context_length
        self.progress = Progress(first, config.steps, tokens_per_step, quiet=not self.is_main_process)
        directory = self.directory if self.is_main_process else None
        try:
            journal = contextlib.closing(Journal(directory, first, config.tensorboard))
            with journal as self.journal, catch_stop_signals(self.directory) as self.received_signal:
                if directory is not None:
                    self.samples = recorded_samples(read_journal(directory))
                with self.progress:
                    if first == 0:
                        self._record_held_out_loss(0, before.held_out)
                    self._train_steps()
                params = gather_to_main_process(self.mesh, self.state.params)
                self._save_model(params, directory)
        except OSError as error:
            raise write_error(error, self.directory, self._saved_steps()) from error
        finally:
            # After an error in one of several processes, the others might never come to close theirs.
            if self.checkpoints is not None and (sys.exc_info()[0] is None or jax.process_count() == 1):
                self.checkpoints.close()
        steps, stop_signal = int(self.state.step), self._stop_signal()
        if stop_signal:
            self._say(stopped(steps, config.steps, self.directory))
            return Stopped(steps, stop_signal)
        outcome = Outcome(
            before=before,
            after=self.evaluate.both(self.state.params),
            bigram=self.bigram,
            tokens_per_second=self.progress.tokens_per_second,
            steps=steps,
        )
        if self.is_main_process:
            self._print_report(outcome, params)
        return outcome

    @functools.cached_property
    def bigram(self) -> float | None:
        """The held-out loss of the bigram model."""
        return bigram_loss(self.data.corpus.train, self.fixed_batches.held_out, self.model.config.vocab_size)

    def _restore_checkpoint(self) -> None:
        if self.checkpoints is None or self.resume is None:
            return
        state = restore(self.checkpoints, self.resume, self.state)
        if state is None:
            self._say(f"{self.directory} holds no checkpoint yet: starting from the beginning")
        else:
            self.state = state
            self._say(resuming(int(state.step), self.config.steps, self.steps_before, self.schedule))

    def _train_steps(self) -> None:
        """Train until the last step or until a stop signal."""
        config = self.config
        train_step = make_step(
            self.model,
            self.optimizer,
            self.schedule,
            self.dropout_key,
            self.mesh,
            self.microbatches,
            config.shard_parameters,
        )
        pending: tuple[int, Metrics] | None = None
        for number, batch in prefetch(self._read_batch, range(int(self.state.step) + 1, config.steps + 1)):
            self.state, metrics = train_step(self.state, batch)
            # JAX returns before the step is done: the metrics of the step before are recorded meanwhile.
            self._record_metrics(pending)
            pending = number, metrics
            stopping = self._stop_signal() > 0
            saving = stopping or number % config.save_every == 0 or number == config.steps
            if saving or is_sample_step(number):
                self._record_metrics(pending)
                pending = None
                self.progress.pause()
                unfinished = stopping and number < config.steps
                held_out_loss = None if unfinished else self._measure_held_out_loss(number)
                if saving:
                    self._save_checkpoint(number, held_out_loss, stopping)
                self.progress.resume()
            if stopping:
                return

    def _stop_signal(self) -> int:
        return received_by_any_process(self.received_signal())

    def _read_batch(self, step: int) -> Batch:
        config = self.config
        batch = make_batch(self.data.corpus.train, config.batch_size, config.context_length + 1, (config.seed, step))
        return shard_batch(self.mesh, batch)

    def _record_metrics(self, pending: tuple[int, Metrics] | None) -> None:
        if pending is None:
            return
        step, metrics = pending
        loss, norm, rate = (float(metric) for metric in metrics)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(step, f"the loss is {loss} and the norm of its gradient {norm}")
        speed = self.progress.update(step, loss)
        values = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
        self.journal.write(step, **values | ({} if speed is None else {"tokens_per_second": speed}))

    def _save_checkpoint(self, step: int, held_out_loss: float | None, stopping: bool) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(step, self.state, held_out_loss)
            if stopping:
                self.checkpoints.wait()

    def _measure_held_out_loss(self, step: int) -> float:
        loss = self.evaluate.held_out(self.state.params)
        if not math.isfinite(loss):
            raise self._diverged(step, f"the held-out loss is {loss}")
        self._record_held_out_loss(step, loss)
        return loss

    def _record_held_out_loss(self, step: int, loss: float) -> None:
        """Show and log the loss, at growing steps and at the end with a sample."""
        self.progress.say(f"step {step}: held-out loss {loss:.4f} nats per {self.data.unit}")
        sample = {}
        if (is_sample_step(step) or step == self.config.steps) and not self._stop_signal():
            params = gather_to_main_process(self.mesh, self.state.params)
            if params is not None:
                text = sample_text(self.model, params, self.prompt, self.data.tokenizer, self.sample_key)
                self.samples.append(Sample(step, loss, text))
                self.progress.say("  " + repr(text))
                sample["sample"] = text
        self.journal.write(step, held_out_loss=loss, **sample)

    def _save_model(self, params: Any, directory: Path | None) -> None:
        if directory is not None and params is not None:
            save_model(directory, self.model.config, params, int(self.state.step))
        if self.checkpoints is not None:
            self.checkpoints.wait()
        if directory is not None:
            draw_curve(directory, self.data.unit, self.bigram)
            write_samples(directory, self.data.tokenizer.decode(self.prompt), self.samples, self.data.unit)

    def _print_report(self, outcome: Outcome, params: Any) -> None:
        samples = sample_table(self.data.tokenizer.decode(self.prompt), self.samples, self.data.unit)
        report = find_task(self.config.task).report(self.config, GPT(self.model.config), params, self.directory)
        say(summary(outcome, self.data.unit, samples, report, self.directory))
        say(verdict(outcome, self.data.unit))

    def _diverged(self, step: int, reason: str) -> DivergedError:
        return diverged(self.config, self.data, step, reason, self.directory, self._saved_steps())

    def _saved_steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, after the one being written is done."""
        if self.checkpoints is None:
            return []
        if jax.process_count() == 1:  # of several, the others may not come to wait
            with contextlib.suppress(OSError):
                self.checkpoints.wait()
        return self.checkpoints.steps()

    def _say(self, line: str) -> None:
        if self.is_main_process:
            say(line)
