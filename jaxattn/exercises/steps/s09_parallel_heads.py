# %% [markdown]
# # Step 9: all heads at once (section 3.6.2)
#
# One wide projection holds the matrices of all heads side by side. Split it into heads, attend in all of them in one
# computation, join them again, and mix them with an output projection.
#
#     x                        (T, d_in)
#     w_query, w_key, w_value  (d_in, H · D)   head h has the columns h · D … (h + 1) · D
#     w_out, b_out             (H · D, d_out), (d_out,)
#     output                   (T, d_out)
#
# Hint: reshape (T, H · D) to (T, H, D) first, and only then move the axis of heads to the front.

# %%
import jax
import jax.numpy as jnp


def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    """Attend causally with all heads at once, and project the joined heads: (T, d_in) -> (T, d_out)."""
    # solution
    T, width = x.shape[0], w_query.shape[-1]
    query, key, value = (
        (x @ matrix).reshape(T, num_heads, width // num_heads).swapaxes(0, 1)  # (T, H · D) -> (H, T, D)
        for matrix in (w_query, w_key, w_value)
    )
    scores = query @ key.swapaxes(1, 2) / jnp.sqrt(key.shape[-1])  # (H, T, T)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -1e30), axis=-1)
    context = (weights @ value).swapaxes(0, 1).reshape(T, width)  # (H, T, D) -> (T, H · D)
    return context @ w_out + b_out
    # end


# %% hints
HINTS = (
    "Split: (x @ w_query).reshape(T, num_heads, D).swapaxes(0, 1) has the shape (H, T, D); do not reshape to that.",
    "Scale by √D, the width of one head; the same (T, T) mask serves all heads.",
    "Join in the opposite order: swapaxes(0, 1) back to (T, H, D), then reshape(T, H · D); then @ w_out + b_out.",
)
