"""A sample of what the model writes, shown during training."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT
from jaxattn.training.batches import Batch
from jaxattn.training.tokenizer import Tokenizer

PROMPT_TOKENS = 32


def first_document(batches: Batch) -> np.ndarray:
    """Return the tokens of the first document in stacked batches `(N, B, length)`."""
    tokens: np.ndarray = batches.tokens[0, 0]
    return tokens if batches.documents is None else tokens[batches.documents[0, 0] == 1]


def sample_text(
    model: GPT, params: Any, document: np.ndarray, tokenizer: Tokenizer, num_tokens: int, key: Array
) -> tuple[str, str]:
    """Let the model continue the beginning of a document; return the beginning and the continuation."""
    prompt = document[: max(1, min(PROMPT_TOKENS, len(document) // 2))]
    new = generate(
        GPT(model.config),
        params,
        jnp.asarray(prompt),
        num_tokens,
        key=key,
        temperature=0.8,
        stop_token=tokenizer.eos_token,
    )
    text = tokenizer.decode(prompt)
    return text, tokenizer.decode([*prompt, *np.asarray(new)])[len(text) :]
