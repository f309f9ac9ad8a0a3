"""The configuration of a training run. Its fields are the options of the command line and the contents of run.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxattn.checks import check_rate
from jaxattn.cli import MAX_SEED, check_number
from jaxattn.models.gpt import GPTConfig
from jaxattn.tasks import find_task
from jaxattn.training.devices import parse_mesh
from jaxattn.training.recipe import find_recipe

TYPES = ("float32", "bfloat16")
# The lowest and the highest value of each number. Compiling takes time for each layer.
LARGE = 2**31 - 1
RANGES = {
    **dict.fromkeys(("steps", "batch_size", "context_length", "heads", "width", "save_every"), (1, LARGE)),
    "layers": (1, 1000),
    **dict.fromkeys(("learning_rate", "accumulate", "kv_heads"), (0, LARGE)),
    "seed": (0, MAX_SEED),
    "vocab_size": (257, LARGE),
}
DATA, MODEL, OPTIMIZATION = "what to learn", "model", "optimization"
DEVICES, OUTPUT = "devices and memory", "saving and resuming"


def _option(
    group: str, default: Any, help: str, metavar: str = "N", *, empty: str = "", may_change: bool = False
) -> Any:
    """Make a field.

    `empty` says what an empty value means. A field that `may_change` when a run is resumed has no influence on the
    steps that were trained before.
    """
    metadata = {"group": group, "help": help, "metavar": metavar, "empty": empty, "may_change": may_change}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        ValueError: a value is out of range, or values contradict each other.
    """

    task: str = _option(
        DATA,
        "text",
        "text; pronouns, a small made-up language whose every pronoun refers to one noun; or copy, random letters and "
        "then the same letters again",
        "NAME",
    )
    text: tuple[str, ...] = _option(
        DATA, (), "files to train on", "FILE", empty="the source of Python's standard library", may_change=True
    )
    tokenizer: str = _option(
        DATA, "bytes", "bytes; bpe, learned from the text with --vocab-size; or a tokenizer.json file", "NAME"
    )
    vocab_size: int = _option(DATA, 1024, "how many tokens --tokenizer bpe learns")

    recipe: str = _option(
        MODEL, "fast", "fast, which learns most in a minute, or gpt2, the model and optimizer of GPT-2", "NAME"
    )
    context_length: int = _option(MODEL, 64, "tokens in a sequence")
    layers: int = _option(MODEL, 4, "blocks of attention and feed-forward layer")
    heads: int = _option(MODEL, 4, "attention heads in a block; must divide the width")
    kv_heads: int = _option(
        MODEL, 0, "KV heads, which groups of attention heads share; must divide --heads", empty="as many as --heads"
    )
    width: int = _option(MODEL, 128, "width of the token vectors, all heads together")
    dropout: float = _option(MODEL, 0.0, "dropout rate in training, from 0 to below 1", "X")

    steps: int = _option(OPTIMIZATION, 1200, "training steps", may_change=True)
    batch_size: int = _option(OPTIMIZATION, 16, "sequences in a step")
    learning_rate: float = _option(OPTIMIZATION, 0.02, "highest learning rate, between warm-up and decay", "X")
    seed: int = _option(OPTIMIZATION, 0, "the same seed gives the same losses on the same machine")

    dtype: str = _option(
        DEVICES, "float32", "type of the computation, float32 or bfloat16; parameters are float32", "TYPE"
    )
    accumulate: int = _option(
        DEVICES,
        0,
        "microbatches into which each device splits its sequences to save memory",
        empty="0, which chooses",
        may_change=True,
    )
    remat: bool = _option(DEVICES, False, "recompute each block in the backward pass to save memory", may_change=True)
    mesh: str = _option(
        DEVICES,
        "",
        "device mesh, as in data=4,model=2 or data=2,seq=4",
        "AXES",
        empty="all devices along data",
        may_change=True,
    )
    shard_parameters: bool = _option(
        DEVICES,
        False,
        "split parameters and optimizer state over the axis data, so that each device stores a part (FSDP, ZeRO)",
        may_change=True,
    )

    out: str | None = _option(OUTPUT, None, "the run's directory", "DIR", empty="nothing is saved", may_change=True)
    save_every: int = _option(
        OUTPUT, 200, "steps between measuring the held-out loss and saving a checkpoint", may_change=True
    )
    tensorboard: bool = _option(OUTPUT, False, "also write TensorBoard scalars to the run's directory", may_change=True)

    def __post_init__(self) -> None:
        self._check_types()
        self._check_numbers()
        task = find_task(self.task)
        find_recipe(self.recipe)
        if self.dtype not in TYPES:
            raise ValueError(f"--dtype is {self.dtype!r}, but must be {' or '.join(TYPES)}")
        task.check(self)
        if self.tokenizer != "bpe" and self.vocab_size != TrainConfig.vocab_size:
            raise ValueError(f"--vocab-size {self.vocab_size} is only for --tokenizer bpe: add that, or leave it out")
        if self.out is not None and not (self.out and self.out.isprintable()):
            problem = "has letters that cannot be shown" if self.out else "is empty"
            raise ValueError(f"--out {self.out!a} {problem}: name another directory")
        if self.tensorboard and self.out is None:
            raise ValueError("--tensorboard writes into the run's directory: name one with --out DIR")
        parse_mesh(self.mesh)
        check_rate(self.dropout)

    def model(self, vocab_size: int) -> GPTConfig:
        """Return the configuration of the model."""
        sizes = vocab_size, self.context_length, self.layers, self.heads, self.width, self.dropout
        return GPTConfig(*sizes, num_kv_heads=self.kv_heads or None, **find_recipe(self.recipe).model)

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that was saved as JSON, which has no tuples."""
        return cls(**{**saved, "text": tuple(saved["text"])})

    def differences(self, other: "TrainConfig") -> list[str]:
        """Describe the fields that differ from the other configuration and influence what is learned."""
        return [
            f"{flag(field.name)} {getattr(self, field.name)}, not {getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if not field.metadata["may_change"] and getattr(self, field.name) != getattr(other, field.name)
        ]

    def _check_types(self) -> None:
        """Check the types, which may be wrong in a damaged run.json."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str if field.default is None else type(field.default)
            fits = isinstance(value, (int, float) if kind is float else kind)
            fits &= isinstance(value, bool) == (kind is bool)
            fits &= field.name != "text" or all(isinstance(file, str) for file in value)
            if not fits and not (field.default is None and value is None):
                raise ValueError(f"{flag(field.name)} is {value!r}, but must be a {kind.__name__}")

    def _check_numbers(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            check_number(flag(name), getattr(self, name), lowest, highest)
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(
                f"--kv-heads {self.kv_heads} are shared by {self.heads} --heads, and {self.kv_heads} does not divide "
                "that: write a number that does, such as 1"
            )
        if self.width % self.heads:
            wider = -(-self.width // self.heads) * self.heads
            raise ValueError(
                f"--width {self.width} is the width of all {self.heads} heads together, and {self.heads} does not "
                f"divide it: write --width {wider}"
            )


def preset(task: str, recipe: str | None = None) -> TrainConfig:
    """Return the configuration that suits a task, with the task's own recipe or another.

    Raises:
        ValueError: there is no such task, or no such recipe.
    """
    of_task = find_task(task).preset
    recipe = of_task.get("recipe", TrainConfig.recipe) if recipe is None else recipe
    return TrainConfig(task=task, **{**find_recipe(recipe).options, **of_task, "recipe": recipe})


def flag(name: str) -> str:
    """Return the option of a field."""
    return "--" + name.replace("_", "-")
