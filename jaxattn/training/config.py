"""What a training run can be told, once: the fields are the command line's options and the saved configuration."""

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from jaxattn.checks import check_rate
from jaxattn.models.gpt import GPTConfig


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> from jaxattn.training.config import TrainConfig
        >>> TrainConfig(layers=2).model.num_layers
        2
    """

    text: tuple[str, ...] = _option((), "files to learn from, any bytes (default: the source of Python's own library)")
    steps: int = _option(1000, "training steps")
    batch_size: int = _option(16, "sequences in a step")
    context_length: int = _option(64, "bytes in a sequence")
    layers: int = _option(4, "blocks of attention and feed-forward layer")
    heads: int = _option(4, "attention heads in a block; must divide the width")
    width: int = _option(128, "width of the token vectors, all heads together")
    dropout: float = _option(0.0, "share that is dropped in training, from 0 to below 1")
    learning_rate: float = _option(3e-3, "highest learning rate, after warm-up and before cosine decay")
    seed: int = _option(0, "same seed, same machine: the same losses")
    out: str | None = _option(None, "directory to save the trained model in (default: it is not saved)")

    def __post_init__(self) -> None:
        for name, least in [("steps", 1), ("batch_size", 1), ("seed", 0), ("learning_rate", 0)]:
            number = getattr(self, name)
            if not least <= number < 2**31:
                raise ValueError(f"{_flag(name)} is {number}, but must be at least {least}")
        check_rate(self.dropout)
        _ = self.model

    @property
    def model(self) -> GPTConfig:
        """The sizes of the model: a vocabulary of the 256 bytes."""
        for name in ("context_length", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} is {getattr(self, name)}, but must be at least 1")
        if self.width % self.heads:
            wider = -(-self.width // self.heads) * self.heads
            raise ValueError(
                f"--width {self.width} is the width of all {self.heads} heads together, which {self.heads} does not "
                f"divide: write --width {wider}"
            )
        return GPTConfig(256, self.context_length, self.layers, self.heads, self.width, self.dropout)


def add_options(parser: ArgumentParser) -> None:
    """Give the parser one option for each field of `TrainConfig`."""
    for field in dataclasses.fields(TrainConfig):
        many, shown = field.name == "text", "" if field.default in ((), None) else f" (default: {field.default})"
        parser.add_argument(
            _flag(field.name),
            default=field.default,
            help=field.metadata["help"] + shown,
            metavar={"text": "FILE", "out": "DIR"}.get(field.name, "N"),
            type=str if field.name in ("text", "out") else type(field.default),
            nargs="+" if many else None,
        )


def from_options(options: Namespace) -> TrainConfig:
    """Make the configuration from parsed options."""
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)}
    text: Sequence[str] = fields.pop("text")
    return TrainConfig(text=tuple(text), **fields)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
