# %% [markdown]
# # Step 4: projections and scale (section 3.4)
#
# Each token now plays three parts, by three trainable matrices: as a query it asks, as a key it answers, as a value it
# is what others receive. Scores are divided by √d_out, the root of the keys' width: a sum of d_out products has d_out
# times the variance, and with large scores the softmax gives one key nearly all the weight and has nearly no gradient.
#
#     x                        (T, d_in)
#     w_query, w_key, w_value  (d_in, d_out)
#     context                  (T, d_out)   softmax(Q Kᵀ / √d_out) V
#
# Hint: which width do queries and keys have once they are projected?

# %%
import jax
import jax.numpy as jnp


def self_attention(x, w_query, w_key, w_value):
    """Attend with projected queries, keys and values: (T, d_in) -> (T, d_out)."""
    # solution
    query, key, value = x @ w_query, x @ w_key, x @ w_value  # (T, d_out) each
    scores = query @ key.T / jnp.sqrt(key.shape[-1])  # (T, T)
    return jax.nn.softmax(scores, axis=-1) @ value
    # end


# %% hints
HINTS = (
    "Three products first: query = x @ w_query, and likewise for key and value.",
    "Scores compare queries with keys: query @ key.T, divided by the root of key.shape[-1].",
    "jax.nn.softmax(scores, axis=-1) @ value.",
)
