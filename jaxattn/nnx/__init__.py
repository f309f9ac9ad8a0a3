"""Multi-head attention as NNX modules, on the same rules as the Linen layers.

Import it where you need it: `from jaxattn import nnx`. Fields, calls and parameters are those of the Linen modules, so
weights move between the two as they are. What differs:

    in_features, context_features   widths of x and of a context; NNX makes its parameters at once
    rngs                            keys for the parameters, and its `dropout` stream; in a call, for dropout_key
    deterministic                   None follows the attribute that `train()`, `eval()` and `nnx.view` set
    cache                           `nnx.Cache` variables below `layer.cache`; `init_cache` makes them before a scan
    intermediates                   `nnx.capture(layer, nnx.Intermediate)(x)` returns the steps that Linen's layer sows

The stages of the book become NNX modules by Flax's bridge:

    flax.nnx.bridge.ToNNX(jaxattn.CausalAttention(features=2), rngs=nnx.Rngs(0)).lazy_init(x)
"""

from jaxattn.nnx.attention import MultiHeadAttention
from jaxattn.nnx.gpt import GPT, generate, stream
from jaxattn.nnx.latent import LatentAttention

__all__ = ["GPT", "LatentAttention", "MultiHeadAttention", "generate", "stream"]
