# %% [markdown]
# # Step 6: dropout with a key (section 3.5.2)
#
# In training, each weight is set to 0 with probability `rate`, at random, so that a model does not rely on single ones.
# The weights that are kept grow by a factor, so that each weight stays the same on average.
#
#     weights   (T, S)
#     rate      in [0, 1): the share that is dropped
#     key       a key of JAX's random numbers (none of attention's keys): the same key drops the same entries
#
# Hint: a weight is kept with probability 1 - rate. By what must it be multiplied, so that the average is 1 · weight?

# %%
import jax
import jax.numpy as jnp


def dropout(weights, rate, key):
    """Drop each weight with probability `rate`, and rescale the others: (T, S) -> (T, S)."""
    # solution
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0)
    # end


# %% hints
HINTS = (
    "jax.random.bernoulli(key, p, shape) draws True with probability p, for each entry on its own.",
    "Kept with probability 1 - rate, times f, is 1 on average: f = 1 / (1 - rate).",
    "jnp.where(kept, weights / (1 - rate), 0). The book's rate is 0.5, where 1 / rate happens to be the same.",
)
