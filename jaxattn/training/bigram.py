"""The bigram model, a baseline: it predicts the next token from the current one alone, by counting pairs."""

import numpy as np

from jaxattn.training.batches import Batch, loss_mask
from jaxattn.training.text import Text

# Enough for a baseline: pairs are counted on at most so many tokens, for vocabularies up to this size.
COUNTED_TOKENS, COUNTED_VOCABULARY, CHUNK = 2**25, 2048, 2**20


def bigram_loss(train: Text, batch: Batch, vocab_size: int) -> float | None:
    """Return the mean loss, in nats per token, of a bigram model counted on `train`, on sequences `(..., length)`.

    One is added to the count of every pair, so that no pair is impossible. A vocabulary of more than 2048 tokens is
    too large to count; its loss is None.

    Example:
        >>> import numpy as np
        >>> from jaxattn.training.batches import Batch
        >>> from jaxattn.training.bigram import bigram_loss
        >>> from jaxattn.training.text import Text
        >>> round(bigram_loss(Text(()), Batch(np.zeros((1, 9), int)), 256), 4)  # nothing counted: log 256
        5.5452
    """
    if vocab_size > COUNTED_VOCABULARY:
        return None
    counts = np.ones(vocab_size**2)
    for start in range(0, min(len(train), COUNTED_TOKENS), CHUNK):
        tokens, _ = train.read(start, start + CHUNK + 1)
        counts += np.bincount(tokens[:-1].astype(np.int64) * vocab_size + tokens[1:], minlength=vocab_size**2)
    table = counts.reshape(vocab_size, vocab_size)
    log_probabilities = np.log(table / table.sum(axis=1, keepdims=True))
    losses = -log_probabilities[batch.tokens[..., :-1], batch.tokens[..., 1:]]
    return float(losses.mean() if batch.documents is None else losses[loss_mask(batch.documents)].mean())
