"""A whole run: text in, a trained model and a verdict out, and whatever happens in between, nothing lost."""

import contextlib
import math
import shlex
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxattn.extras import require
from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT
from jaxattn.training.checkpoints import Checkpoints
from jaxattn.training.config import TrainConfig
from jaxattn.training.data import Data, open_data
from jaxattn.training.devices import gather, make_mesh, parse_mesh, ring_of, spread_batch
from jaxattn.training.directory import CHECKPOINTS
from jaxattn.training.journal import Journal, draw_curve
from jaxattn.training.progress import Progress, say
from jaxattn.training.pronoun_report import report_pronouns, table, write_report
from jaxattn.training.pronouns import held_out, trained_on
from jaxattn.training.report import Losses, Outcome, introduction, losses_in_words, verdict
from jaxattn.training.saving import save_model
from jaxattn.training.step import (
    Measures,
    choose_parts,
    init_state,
    make_evaluation,
    make_optimizer,
    make_schedule,
    make_step,
)
from jaxattn.training.text import Batch, batch_places, bigram_loss, make_batch

EVALUATION_BATCHES = 16


class DivergedError(ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class Run:
    """One run, from configuration to outcome; the methods stand in the order in which they are called.

    Args:
        config: what to train on, for how long, with which sizes.
        resume: the step to go on from, -1 for the last that was saved, None to begin.

    Raises:
        OSError: a text cannot be read, or the directory cannot be written.
        ValueError: there is too little text, the directory holds another run, or sizes do not divide.
    """

    def __init__(self, config: TrainConfig, resume: int | None = None) -> None:
        self.config = config
        self.speaks = jax.process_index() == 0
        self.mesh = make_mesh(parse_mesh(config.mesh), config.batch_size, config.heads, config.context_length)
        # What cannot be done is said before anything on disk is touched.
        self.parts = _parts(config, self.mesh)
        if config.tensorboard:
            require("tensorboardX", extra="tensorboard")
        self.data: Data = open_data(config, resume is not None)
        sizes = config.model(self.data.tokenizer.vocab_size)
        dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
        self.model = GPT(sizes, dtype, config.remat, ring_of(self.mesh))
        init_key, self.step_key, self.sample_key = jax.random.split(jax.random.key(config.seed), 3)
        self.schedule = make_schedule(config.steps, config.learning_rate)
        self.state = init_state(self.model, make_optimizer(self.schedule), init_key, self.mesh)
        self.fixed = self._fixed_batches()
        self.evaluate = _make_losses(self.model, self.mesh, self.fixed)
        self.checkpoints = None if self.directory is None else Checkpoints(self.directory / CHECKPOINTS)
        self.resumed = resume

    @property
    def directory(self) -> Path | None:
        """Where the run is kept, if anywhere."""
        return self.data.directory

    def train(self) -> Outcome:
        """Train, say how it goes, save, and say what came of it.

        Raises:
            DivergedError: a loss was NaN or infinite; what was saved before is intact.
            OSError: the disk is full; what was saved before is intact.
            ValueError: a checkpoint is damaged.
        """
        self._say(introduction(self.config, self.data, self.mesh, self.state.params))
        before = self.evaluate(self.state.params)
        self._go_back_to_the_checkpoint()
        first = int(self.state.step)
        keeps = self.directory if self.speaks else None
        tokens = self.config.batch_size * self.config.context_length
        self.progress = Progress(first, self.config.steps, tokens, quiet=not self.speaks)
        try:
            journal = contextlib.closing(Journal(keeps, first, self.config.tensorboard))
            with journal as self.journal, _stop_signals() as self.stopped:
                with self.progress:
                    stopped = self._steps()
                params = gather(self.mesh, self.state.params)
                if keeps is not None:
                    save_model(keeps, self.model.config, params)
                if self.checkpoints is not None:
                    self.checkpoints.wait()
                if keeps is not None:
                    draw_curve(keeps, self.data.unit)
        except OSError as error:
            raise self._explained(error) from error
        finally:
            if self.checkpoints is not None:
                self.checkpoints.close()
        steps = int(self.state.step)
        outcome = Outcome(
            before=before,
            after=self.evaluate(self.state.params),
            bigram=bigram_loss(self.data.corpus.train, self.fixed[1], self.model.config.vocab_size),
            tokens_per_second=self.progress.tokens_per_second,
            steps=steps,
            signal=stopped if steps < self.config.steps else 0,
        )
        if self.speaks:
            self._report(outcome, params)
        return outcome

    def _go_back_to_the_checkpoint(self) -> None:
        if self.checkpoints is None or self.resumed is None:
            return
        steps = self.checkpoints.steps()
        if not steps and self.resumed < 0:
            self._say(f"{self.directory} holds no checkpoint yet: starting from the beginning")
            return
        step = steps[-1] if self.resumed < 0 else self.resumed
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise ValueError(f"--resume {step}: no complete checkpoint of that step is there, but {there}")
        try:
            self.state = self.checkpoints.restore(step, self.state)
        except ValueError as error:
            earlier = self.checkpoints.whole_before(step, self.state)
            offer = (
                "no complete one stands before it: begin anew with another --out"
                if earlier is None
                else f"the one of step {earlier} is complete: {self._command(earlier)} goes on from there"
            )
            raise ValueError(f"{error}; {offer}") from None
        self.checkpoints.forget_after(step)
        self._say(f"going on from step {step}")

    def _steps(self) -> int:
        """Take the steps that are left, each one's loss looked at while the next runs; return a signal that came."""
        config, step = self.config, make_step(self.model, self.schedule, self.step_key, self.mesh, self.parts)
        first, before = int(self.state.step) + 1, None
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._batch, first)
            for number in range(first, config.steps + 1):
                batch = coming.result()
                if number < config.steps:
                    coming = reader.submit(self._batch, number + 1)
                self.state, measures = step(self.state, batch)
                if before is not None:
                    self._look_at(number - 1, before)
                before = measures
                stopped = self._asked_to_stop()
                if stopped or number % config.save_every == 0 or number == config.steps:
                    self._look_at(number, measures)
                    before = None
                    self.progress.pause()
                    self._save(number, hurry=stopped > 0 and number < config.steps)
                    self.progress.resume()
                if stopped:
                    return stopped
        return 0

    def _look_at(self, number: int, measures: Measures) -> None:
        loss, norm, rate = (float(measure) for measure in measures)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(number, f"the loss is {loss}, the norm of its gradient {norm}")
        speed = self.progress.update(number, loss)
        values = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
        self.journal.write(number, **values | ({} if speed is None else {"tokens_per_second": speed}))

    def _save(self, number: int, hurry: bool) -> None:
        """Measure the held-out loss, draw a sample, save, and show both; in a hurry, save alone."""
        held_out, sample = None, ""
        if not hurry:
            held_out = self.evaluate(self.state.params).held_out
            if not math.isfinite(held_out):
                raise self._diverged(number, f"the held-out loss is {held_out}")
            sample = "" if number == self.config.steps else self._sample(gather(self.mesh, self.state.params), 60)[1]
            self.journal.write(number, held_out_loss=held_out, **{"sample": sample} if sample else {})
        if self.checkpoints is not None:
            self.checkpoints.save(number, self.state, held_out)
            if hurry:
                self.checkpoints.wait()
        if not hurry:
            self.progress.say(f"step {number}: held-out loss {held_out:.4f} nats per {self.data.unit}")
            if sample:
                self.progress.say("  " + repr(sample))

    def _sample(self, params: Any, length: int) -> tuple[str, str]:
        """Continue the beginning of a held-out document; return it, and how the model goes on."""
        tokens, documents = self.fixed[1].tokens[0, 0], self.fixed[1].documents
        document = tokens if documents is None else tokens[documents[0, 0] == 1]
        prompt = document[: max(1, min(32, len(document) // 2))]
        key, separator = jax.random.fold_in(self.sample_key, length), self.data.tokenizer.separator
        model, decode = GPT(self.model.config), self.data.tokenizer.decode
        new = generate(model, params, jnp.asarray(prompt), length, key=key, temperature=0.8, stop_token=separator)
        return decode(prompt), decode([*prompt, *np.asarray(new)])[len(decode(prompt)) :]

    def _batch(self, number: int) -> Batch:
        seed = (self.config.seed, number)
        batch = make_batch(self.data.corpus.train, self.config.batch_size, self.config.context_length + 1, seed)
        return spread_batch(self.mesh, batch)

    def _fixed_batches(self) -> list[Batch]:
        """Batches to measure on: `(EVALUATION_BATCHES, B, context_length + 1)` of either part."""
        config, fixed = self.config, []
        for part, text in enumerate(self.data.corpus):
            batches = [
                make_batch(text, config.batch_size, config.context_length + 1, (config.seed, 0, part, number))
                for number in range(EVALUATION_BATCHES)
            ]
            fixed.append(jax.tree.map(lambda *arrays: np.stack(arrays), *batches))
        return fixed

    def _diverged(self, number: int, what: str) -> DivergedError:
        """Say where a number was none, and what is left."""
        length = self.config.context_length + 1
        places = batch_places(self.data.corpus.train, self.config.batch_size, length, (self.config.seed, number))
        steps = self._intact()
        last = f"the last good checkpoint is {self._command(steps[-1])}" if steps else "no checkpoint was saved"
        return DivergedError(
            f"at step {number} {what}, on the sequences that begin at {self.data.unit} "
            f"{', '.join(map(str, places))} of the training text; {last}; the same steps give the same numbers, so "
            "begin anew with a lower --learning-rate and another --out"
        )

    def _explained(self, error: OSError) -> OSError:
        """Say what a full disk left intact."""
        steps, reason = self._intact(), str(error)
        if str(self.directory) not in reason:
            reason = f"the run could not be written in {self.directory} ({reason})"
        if not steps:
            return OSError(f"{reason}; no checkpoint was saved before")
        return OSError(f"{reason}; the checkpoint of step {steps[-1]} is intact: {self._command()} goes on from there")

    def _intact(self) -> list[int]:
        """Return the steps of all complete checkpoints, when nothing is being written any more."""
        if self.checkpoints is None:
            return []
        with contextlib.suppress(OSError):
            self.checkpoints.wait()
        return self.checkpoints.steps()

    def _asked_to_stop(self) -> int:
        """Return the signal that came; where several processes train together, the one that came to any of them."""
        if jax.process_count() == 1:
            return self.stopped()
        return int(np.max(multihost_utils.process_allgather(np.array(self.stopped()))))

    def _command(self, step: int | None = None) -> str:
        number = "" if step is None else f" {step}"
        return f"python scripts/train.py --out {shlex.quote(str(self.directory))} --resume{number}"

    def _say(self, line: str = "") -> None:
        if self.speaks:
            say(line)

    def _report(self, outcome: Outcome, params: Any) -> None:
        say("\n" + losses_in_words(outcome, self.data.unit))
        prompt, sample = self._sample(params, 200)
        say(f"\nsample, after the held-out text {prompt!r}:\n{sample}\n")
        if self.directory is not None:
            quoted = shlex.quote(str(self.directory))
            say(f"saved in {self.directory}: python scripts/generate.py {quoted}")
        if self.config.task == "pronouns":
            self._report_pronouns(params)
        if outcome.tokens_per_second is not None:
            say(f"{outcome.tokens_per_second:,.0f} tokens/s on {jax.devices()[0].platform}")
        if outcome.signal:
            going_on = "" if self.directory is None else f": {self._command()} goes on"
            say(f"stopped after {outcome.steps} steps, as asked{going_on}")
        say(verdict(outcome))

    def _report_pronouns(self, params: Any) -> None:
        seed = self.config.seed
        report = report_pronouns(GPT(self.model.config), params, held_out(seed), trained_on(seed))
        say(table(report))
        if self.directory is not None:
            write_report(self.directory / "pronouns.json", report)


def _parts(config: TrainConfig, mesh: Mesh) -> int:
    """Return in how many parts each device computes its share of a step."""
    if not config.accumulate:
        return choose_parts(config.batch_size, config.context_length, mesh)
    share = config.batch_size // mesh.shape["data"]
    if share % config.accumulate:
        raise ValueError(
            f"--accumulate {config.accumulate} does not divide the {share} sequences that a device has in a step"
        )
    return config.accumulate


def _make_losses(model: GPT, mesh: Mesh, fixed: list[Batch]) -> Callable[[Any], Losses]:
    evaluation, batches = make_evaluation(model, mesh), [spread_batch(mesh, batch, axis=1) for batch in fixed]
    return lambda params: Losses(*(float(evaluation(params, part)) for part in batches))


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], int]]:
    """Let the step in progress end on SIGINT, SIGTERM and SIGHUP, so that what was learned is saved; tell which came.

    A second one does what it did before. Those that are ignored, as `nohup` has it, stay so.
    """
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            before = previous[number]
            if not callable(before):
                raise KeyboardInterrupt
            before(number, frame)

    all_numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    numbers = [number for number in all_numbers if number and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
