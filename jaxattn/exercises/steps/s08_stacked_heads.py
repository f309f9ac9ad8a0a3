# %% [markdown]
# # Step 8: stacked heads (section 3.6.1)
#
# One head has one pattern of attention. Several heads, each with matrices of its own, look for several things, and
# their outputs stand side by side: head 0 first.
#
#     x        (T, d_in)
#     heads    a list of H heads (w_query, w_key, w_value), each (d_in, D): D is the width of one head
#     key      one PRNG key for all heads together
#     output   (T, H · D)
#
# Hint: call `causal_attention` in a loop, and give each head a key of its own.

# %%
import jax
import jax.numpy as jnp


def causal_attention(x, w_query, w_key, w_value, rate, key):
    """Attend causally in one sequence, with dropout: (T, d_in) -> (T, D)."""
    scores = (x @ w_query) @ (x @ w_key).T / jnp.sqrt(w_key.shape[-1])
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -1e30))
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0) @ (x @ w_value)


def stacked_heads(x, heads, rate, key):
    """Attend with each head, and join their outputs side by side: (T, d_in) -> (T, H · D)."""
    # solution
    keys = jax.random.split(key, len(heads))
    outputs = [causal_attention(x, *head, rate, head_key) for head, head_key in zip(heads, keys, strict=True)]
    return jnp.concatenate(outputs, axis=-1)
    # end


# %% hints
HINTS = (
    "keys = jax.random.split(key, len(heads)) gives each head its own dropout.",
    "Collect the outputs in a list, in the order of the heads.",
    "jnp.concatenate(outputs, axis=-1) joins them along the width: (T, D) each -> (T, H · D).",
)
