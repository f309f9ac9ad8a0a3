# %% [markdown]
# # Step 2: softmax (section 3.3.1)
#
# Weights are scores that are positive and sum to 1 for each query, so that they can weigh an average:
# weights[i, j] = exp(scores[i, j]) / sum over all keys k of exp(scores[i, k]).
#
#     scores    (T, S)   a row for each query, a column for each key
#     weights   (T, S)   each row sums to 1
#
# Hint: exp(1000) is too large for float32. Subtract something from each row first that cancels in the fraction.

# %%
import jax.numpy as jnp


def softmax_rows(scores):
    """Turn each row of scores into weights that sum to 1: (T, S) -> (T, S)."""
    # solution
    exponentials = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
    # end


# %% hints
HINTS = (
    "Which axis belongs to the keys? Sum over that one: the last.",
    "keepdims=True keeps the sum as a column, so that each row is divided by its own sum.",
    "Subtract scores.max(axis=-1, keepdims=True) before exp: exp(a - m) / exp(b - m) = exp(a) / exp(b).",
)
