"""What the model writes at growing steps, after the same beginning and with the same random key: one sees it learn."""

import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.files import write_whole
from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT
from jaxattn.training.batches import Batch
from jaxattn.training.evaluation import choices
from jaxattn.training.tokenizer import Tokenizer

FILE = "samples.html"
PROMPT_TOKENS, SAMPLE_TOKENS = 32, 120
LINES = 2  # of the table in the terminal, for each sample

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; }
main { display: flex; gap: 1em; overflow-x: auto; }
section { flex: 0 0 17em; border-top: 3px solid #4477aa; }
h2 { font-size: 1.1em; margin: 0.5em 0 0; }
p { margin: 0; }
pre { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }"""


class Sample(NamedTuple):
    """What the model wrote after so many steps, and its held-out loss then."""

    step: int
    loss: float
    text: str


def is_sample_step(step: int) -> bool:
    """Return whether a sample is taken: after 0, 10, 30, 100, 300, 1000 ... steps.

    Example:
        >>> from jaxattn.training.sample import is_sample_step
        >>> [step for step in range(2000) if is_sample_step(step)]
        [0, 10, 30, 100, 300, 1000]
    """
    digits = str(step)
    return step == 0 or (step >= 10 and digits[0] in "13" and not digits[1:].strip("0"))


def first_document(batches: Batch) -> np.ndarray:
    """Return the tokens of the first document in stacked batches `(N, B, length)`."""
    tokens: np.ndarray = batches.tokens[0, 0]
    return tokens if batches.documents is None else tokens[batches.documents[0, 0] == 1]


def choose_prompt(batches: Batch) -> np.ndarray:
    """Return the beginning of the first document in stacked batches."""
    document = first_document(batches)
    return document[: max(1, min(PROMPT_TOKENS, len(document) // 2))]


def sample_text(model: GPT, params: Any, prompt: np.ndarray, tokenizer: Tokenizer, key: Array) -> str:
    """Let the model continue the prompt; return the continuation."""
    new = generate(
        GPT(model.config),
        params,
        jnp.asarray(prompt),
        SAMPLE_TOKENS,
        key=key,
        temperature=0.8,
        stop_token=tokenizer.eos_token,
    )
    return tokenizer.decode([*prompt, *np.asarray(new)])[len(tokenizer.decode(prompt)) :]


def recorded_samples(records: Sequence[dict[str, Any]]) -> list[Sample]:
    """Return the samples among the records of a log, those of growing steps and the last one."""
    whole = [
        record for record in records if record.get("sample") is not None and record.get("held_out_loss") is not None
    ]
    samples = [Sample(record["step"], record["held_out_loss"], record["sample"]) for record in whole]
    return [sample for sample in samples if is_sample_step(sample.step) or sample is samples[-1]]


def sample_table(prompt: str, samples: Sequence[Sample], unit: str) -> str:
    """Return a table for the terminal, as wide as that: a line or two of each sample.

    Example:
        >>> from jaxattn.training.sample import Sample, sample_table
        >>> print(sample_table("the old ", [Sample(0, 5.55, "x~Q"), Sample(100, 2.1, "dog bit")], "byte"))
        what the model writes after the held-out text 'the old ', and its held-out loss:
          step    loss   like 1 of  sample
             0    5.55   257 bytes  x~Q
           100    2.10  8.17 bytes  dog bit
    """
    columns = [("step", "loss", "like 1 of", "sample")]
    columns += [
        (str(sample.step), f"{sample.loss:.2f}", f"{choices(sample.loss)} {unit}s", repr(sample.text)[1:-1])
        for sample in samples
    ]
    sizes = [max(6, *(len(row[column]) for row in columns)) for column in range(3)]
    margin = sum(sizes) + 2 * len(sizes)
    width = max(20, shutil.get_terminal_size().columns - margin)
    lines = [f"what the model writes after the held-out text {prompt!r}, and its held-out loss:"]
    for *numbers, text in columns:
        text = text if len(text) <= LINES * width else text[: LINES * width - 1] + "…"
        first, *others = [text[start : start + width] for start in range(0, max(1, len(text)), width)]
        cells = (f"{number:>{size}}  " for number, size in zip(numbers, sizes, strict=True))
        lines += ["".join(cells) + first, *(" " * margin + other for other in others)]
    return "\n".join(lines)


def write_samples(directory: Path, prompt: str, samples: Sequence[Sample], unit: str) -> None:
    """Write a page that shows the samples side by side.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    columns = [
        f"<section><h2>step {sample.step}</h2><p>held-out loss {sample.loss:.2f}, like choosing among "
        f"{choices(sample.loss)} {unit}s</p>"
        f"<pre>{html.escape(sample.text)}</pre></section>"
        for sample in samples
    ]
    page = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Samples</title>',
        f"<style>{STYLE}</style><h1>What the model writes as it learns</h1>",
        f"<p>Each text continues the same held-out text, with the same random key; losses are in nats per {unit}:</p>",
        f"<pre>{html.escape(prompt)}</pre><main>",
        *columns,
        "</main></html>\n",
    ]
    write_whole(directory / FILE, "\n".join(page).encode())
