# %% [markdown]
# # Step 7: batches with vmap (section 3.5.3)
#
# `causal_attention` below is finished, for one sequence. Apply it to a batch of sequences, in which every example drops
# entries of its own.
#
#     x         (B, T, d_in)
#     w_…       (d_in, d_out), the same for all examples
#     key       one PRNG key for the whole batch
#     output    (B, T, d_out)
#
# Hint: jax.vmap(f, in_axes=...) says for each argument which axis holds the examples; None stands for shared ones.

# %%
import jax
import jax.numpy as jnp


def causal_attention(x, w_query, w_key, w_value, rate, key):
    """Attend causally in one sequence, with dropout: (T, d_in) -> (T, d_out)."""
    scores = (x @ w_query) @ (x @ w_key).T / jnp.sqrt(w_key.shape[-1])
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -1e30))
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0) @ (x @ w_value)


def batched_attention(x, w_query, w_key, w_value, rate, key):
    """Attend in each example of a batch, with a dropout key of its own: (B, T, d_in) -> (B, T, d_out)."""
    # solution
    keys = jax.random.split(key, x.shape[0])
    attend = jax.vmap(causal_attention, in_axes=(0, None, None, None, None, 0))
    return attend(x, w_query, w_key, w_value, rate, keys)
    # end


# %% hints
HINTS = (
    "jax.random.split(key, B) makes B independent keys from one.",
    "x and the keys have an axis of examples, 0; the matrices and the rate have none: None.",
    "jax.vmap(causal_attention, in_axes=(0, None, None, None, None, 0))(x, w_query, w_key, w_value, rate, keys).",
)
