"""What a training run can be told, once: the fields are the command line's options and the saved configuration."""

import dataclasses
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from typing import Any

from jaxattn.checks import check_rate
from jaxattn.models.gpt import GPTConfig
from jaxattn.training.devices import parse_mesh
from jaxattn.training.pronouns import LONGEST

TASKS = ("text", "pronouns")
TYPES = ("float32", "bfloat16")


def _option(default: Any, help: str, metavar: str = "N", free: bool = False) -> Any:
    """Make a field; one that is free may be another when a run is resumed, for it changes nothing that is learned."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "free": free})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> from jaxattn.training.config import TrainConfig
        >>> TrainConfig(layers=2).model(vocab_size=256).num_layers
        2
    """

    task: str = _option("text", "what to learn: text, or pronouns, a small language made to be understood", "NAME")
    text: tuple[str, ...] = _option(
        (), "files to learn from (default: the source of Python's own library)", "FILE", free=True
    )
    tokenizer: str = _option(
        "bytes", "bytes; bpe, learned from the text with --vocab-size; or the file of a tokenizer.json", "NAME"
    )
    vocab_size: int = _option(1024, "how many tokens --tokenizer bpe learns")
    steps: int = _option(1000, "training steps")
    batch_size: int = _option(16, "sequences in a step")
    context_length: int = _option(64, "tokens in a sequence")
    layers: int = _option(4, "blocks of attention and feed-forward layer")
    heads: int = _option(4, "attention heads in a block; must divide the width")
    width: int = _option(128, "width of the token vectors, all heads together")
    dropout: float = _option(0.0, "share that is dropped in training, from 0 to below 1")
    learning_rate: float = _option(3e-3, "highest learning rate, after warm-up and before cosine decay")
    dtype: str = _option("float32", "type to compute in, float32 or bfloat16; parameters are float32", "TYPE")
    seed: int = _option(0, "same seed, same machine: the same losses")
    accumulate: int = _option(
        0, "parts in which each device computes its share of a step, to save memory (0: chosen)", free=True
    )
    remat: bool = _option(False, "compute each block anew in the backward pass, to save memory", free=True)
    mesh: str = _option(
        "", "devices, as in data=4,model=2 or data=2,seq=4 (default: all, along data)", "AXES", free=True
    )
    save_every: int = _option(200, "steps after which the held-out loss is measured and the run saved", free=True)
    tensorboard: bool = _option(False, "write TensorBoard's scalars to the run's directory as well", free=True)
    out: str | None = _option(None, "the run's directory (default: nothing is saved)", "DIR", free=True)

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "context_length": 1, "layers": 1, "heads": 1, "width": 1, "save_every": 1}
        for name, bound in {**least, "seed": 0, "learning_rate": 0, "accumulate": 0, "vocab_size": 257}.items():
            number = getattr(self, name)
            if not bound <= number < 2**31:
                raise ValueError(f"{flag(name)} is {number}, but must be at least {bound}")
        for name, allowed in (("task", TASKS), ("dtype", TYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{flag(name)} is {getattr(self, name)!r}, but must be {' or '.join(allowed)}")
        if self.task == "pronouns" and (self.text or self.tokenizer != "bytes"):
            raise ValueError("--task pronouns makes its own text and words: leave --text and --tokenizer out")
        if self.task == "pronouns" and self.context_length < LONGEST:
            raise ValueError(
                f"--context-length is {self.context_length}, but a sentence with a pronoun has up to {LONGEST} words: "
                f"write --context-length {LONGEST} or more"
            )
        if self.width % self.heads:
            wider = -(-self.width // self.heads) * self.heads
            raise ValueError(
                f"--width {self.width} is the width of all {self.heads} heads together, which {self.heads} does not "
                f"divide: write --width {wider}"
            )
        if self.tokenizer != "bpe" and self.vocab_size != TrainConfig.vocab_size:
            raise ValueError(
                f"--vocab-size {self.vocab_size} is for --tokenizer bpe alone: write that, or leave it out"
            )
        if self.out is not None and not self.out.isprintable():
            raise ValueError(f"--out {self.out!a} has letters that cannot be shown: name another directory")
        if self.tensorboard and self.out is None:
            raise ValueError("--tensorboard writes into the run's directory: name one with --out DIR")
        if parse_mesh(self.mesh).get("seq", 1) > 1 and self.dropout:
            raise ValueError("--mesh seq= spreads attention around a ring, which has no dropout: write --dropout 0")
        check_rate(self.dropout)

    def model(self, vocab_size: int) -> GPTConfig:
        """Return the sizes of the model."""
        return GPTConfig(vocab_size, self.context_length, self.layers, self.heads, self.width, self.dropout)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Say in which of the fields that matter to what is learned the other configuration is another."""
        return [
            f"{flag(field.name)} {getattr(self, field.name)}, not {getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if not field.metadata["free"] and getattr(self, field.name) != getattr(other, field.name)
        ]


# What a task is learned with unless said otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    "text": {},
    "pronouns": {"layers": 2, "heads": 4, "batch_size": 32, "steps": 2000, "save_every": 500},
}


def add_options(parser: ArgumentParser) -> None:
    """Give the parser one option for each field of `TrainConfig`; those that are not given are not in its result."""
    for field in dataclasses.fields(TrainConfig):
        if isinstance(field.default, bool):
            parser.add_argument(
                flag(field.name), action=BooleanOptionalAction, default=SUPPRESS, help=field.metadata["help"]
            )
            continue
        shown = "" if field.default in ((), None, "") else f" (default: {field.default})"
        text = field.default is None or field.default == ()
        parser.add_argument(
            flag(field.name),
            default=SUPPRESS,
            help=field.metadata["help"] + shown,
            metavar=field.metadata["metavar"],
            type=str if text else type(field.default),
            nargs="+" if field.default == () else None,
        )


def from_options(options: Namespace, saved: TrainConfig | None = None) -> TrainConfig:
    """Make the configuration from parsed options; those not given are as saved, or as the task has them.

    Raises:
        ValueError: an option is out of its range.
    """
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if "text" in given:
        given["text"] = tuple(given["text"])
    if saved is not None:
        return dataclasses.replace(saved, **given)
    return TrainConfig(**PRESETS.get(given.get("task", "text"), {}) | given)


def flag(name: str) -> str:
    """Return a field's option."""
    return "--" + name.replace("_", "-")
