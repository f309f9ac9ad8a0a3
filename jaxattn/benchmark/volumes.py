"""What a training step needs on paper: parameters, and the bytes that each of n devices sends for each way to split."""

from typing import NamedTuple

from jaxattn.models.gpt import GPTConfig


class Sizes(NamedTuple):
    """The sizes of a decoder; `kv_width` is that of all KV heads together, `positions` the number of learned ones."""

    layers: int
    width: int
    kv_width: int
    vocab_size: int
    positions: int = 0

    @classmethod
    def of_gpt(cls, config: GPTConfig) -> "Sizes":
        """Return the sizes of this library's GPT."""
        return cls(config.num_layers, config.features, config.features, config.vocab_size, config.context_length)

    @property
    def multiplied(self) -> int:
        """The parameters in matrix products: attention's, a feed-forward layer 4 times as wide, and the embedding."""
        block = 2 * self.width * (self.width + self.kv_width + 4 * self.width)
        return self.layers * block + self.vocab_size * self.width

    @property
    def parameters(self) -> int:
        """All parameters but biases and norms, which are less than 1 %."""
        return self.multiplied + self.positions * self.width


def gathered(size: float, n: int) -> float:
    """Bytes that each of n devices sends to gather an array of `size` bytes, or to sum it into shards."""
    return (n - 1) / n * size


def summed(size: float, n: int) -> float:
    """Bytes that each of n devices sends so that all have the sum of their arrays of `size` bytes."""
    return 2 * gathered(size, n)


def data_bytes(parameters: float, n: int, width: int) -> float:
    """Split the examples: one sum of the gradients, of `width` bytes each."""
    return summed(width * parameters, n)


def shard_bytes(parameters: float, n: int, width: int, gathers: int) -> float:
    """Split the parameters too: gather them once or twice, and sum the gradients into shards (Rajbhandari et al. 2020).

    Layers that are dropped after the forward pass are gathered twice.
    """
    return (gathers + 1) * gathered(width * parameters, n)


def model_bytes(sizes: Sizes, tokens: float, n: int, width: int, passes: int = 2) -> float:
    """Split heads and feed-forward layers: two sums of the activations in each layer and pass (Shoeybi et al. 2019)."""
    return 2 * passes * sizes.layers * summed(width * tokens * sizes.width, n)


def context_bytes(sizes: Sizes, tokens: float, n: int, width: int, forwards: int = 1) -> float:
    """Split the tokens, of which each device has `tokens`: keys and values travel n - 1 hops in each pass.

    Their gradients, in float32, travel along in the backward pass, and home.
    """
    keys_and_values = 2 * tokens * sizes.kv_width * sizes.layers
    return keys_and_values * (width * (n - 1) * (forwards + 1) + (4 * n if n > 1 else 0))


def gathered_context_bytes(sizes: Sizes, T: int, n: int, width: int, forwards: int = 1) -> float:
    """Split the tokens, T in all: gather all keys and values in each pass, and sum their gradients into shards."""
    keys_and_values = 2 * T * sizes.kv_width * sizes.layers
    return (forwards + 1) * gathered(width * keys_and_values, n) + gathered(4 * keys_and_values, n)
