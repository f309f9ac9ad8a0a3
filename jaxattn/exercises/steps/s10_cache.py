# %% [markdown]
# # Step 10: a KV cache (after the book's chapter 3)
#
# A model that writes a text attends from the newest token alone. Keys and values of earlier tokens never change, so
# they are kept, and each step computes one query, one key and one value. Scores are scaled as in step 4.
#
#     x         (d_in,)       the newest token
#     keys      (t, d_out)    of the t tokens before it; t may be 0
#     values    (t, d_out)
#     returns   context (d_out,), and the keys and values with the newest token's added, (t + 1, d_out) each
#
# Hint: no mask is needed, because nothing later than the newest token exists yet.

# %%
import jax
import jax.numpy as jnp


def decode_step(x, keys, values, w_query, w_key, w_value):
    """Attend from the newest token to all tokens so far: returns context, keys, values."""
    # solution
    keys = jnp.concatenate([keys, (x @ w_key)[None]])  # (t + 1, d_out)
    values = jnp.concatenate([values, (x @ w_value)[None]])
    scores = keys @ (x @ w_query) / jnp.sqrt(keys.shape[-1])  # (t + 1,)
    return jax.nn.softmax(scores) @ values, keys, values
    # end


# %% hints
HINTS = (
    "Add the newest key and value first: a token attends to itself, too.",
    "(x @ w_key)[None] has the shape (1, d_out), so that jnp.concatenate can append it.",
    "softmax(keys @ query / √d_out) @ values, with a single row of t + 1 weights.",
)
