# %% [markdown]
# # Step 5: the causal mask, before and after the softmax (section 3.5.1)
#
# A model that predicts the next token must not look at it. Entry [i, j] of the mask says whether query i may attend to
# key j: to itself and to what came before.
#
#     mask      (T, S)   True = may attend; for the causal mask, S = T
#     scores    (T, S)
#     weights   (T, S)   masked entries are 0, each row sums to 1; a row that may attend to nothing is all 0 (no causal
#                        mask has such a row, but a mask for padding may)
#
# There are two ways. Before the softmax, masked scores become −∞, because exp(−∞) = 0. After the softmax, masked
# weights become 0 and each row is divided by its new sum. Both give the same weights.
#
# Hint: jnp.tril keeps the lower triangle, with the diagonal.

# %%
import jax
import jax.numpy as jnp


def causal_mask(T):
    """Return the (T, T) boolean mask with which no token attends to a later one."""
    # solution
    return jnp.tril(jnp.ones((T, T), bool))
    # end


def masked_weights(scores, mask):
    """Mask before the softmax: (T, S), (T, S) -> (T, S)."""
    # solution
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.where(mask, weights, 0)
    # end


def renormalized_weights(weights, mask):
    """Mask after the softmax: set masked weights to 0, and let each row sum to 1 again: (T, S), (T, S) -> (T, S)."""
    # solution
    kept = jnp.where(mask, weights, 0)
    total = kept.sum(axis=-1, keepdims=True)
    return kept / jnp.where(total == 0, 1, total)
    # end


# %% hints
HINTS = (
    "jnp.where(mask, a, b) takes a where the mask is True and b elsewhere.",
    "With −∞ in every entry of a row, the softmax is 0 / 0 = NaN: use a large negative number, such as -1e30.",
    "A row with no key to attend to: set masked weights to 0 after the softmax too, and divide by 1 where a sum is 0.",
)
