# %% [markdown]
# # Step 1: raw scores (section 3.3.1)
#
# A text comes as tokens (words, or parts of them), each of them a vector. How much should each token attend to each
# other one? The simplest answer compares their vectors: two vectors that point the same way have a large dot product.
# The token that asks is called the query, and the tokens that it is compared with are the keys.
#
#     x        (T, d)   T token vectors
#     scores   (T, T)   scores[i, j] = x[i] · x[j]: query i, key j
#
# Hint: entry [i, j] multiplies row i with row j and sums over the width.

# %%
import jax.numpy as jnp


def raw_scores(x):
    """Compare every token with every token by their dot product: (T, d) -> (T, T)."""
    # solution
    return jnp.einsum("id,jd->ij", x, x)
    # end


# %% hints
HINTS = (
    "Write it first for one pair: jnp.dot(x[0], x[1]) is the score of tokens 0 and 1.",
    "A matrix product sums over the last axis of the first factor and the first axis of the second one.",
    "So transpose the second factor: x @ x.T.",
)
