# %% [markdown]
# # Step 3: context vectors (section 3.3.1)
#
# What a token takes from the others is called its context: the average of their vectors, weighted by its row of the
# weights. The vectors that are averaged are called values. So far they are the token vectors themselves; the next step
# makes others.
#
#     weights   (T, S)    each row sums to 1
#     value     (S, d)    one vector for each key
#     context   (T, d)    context[i] = sum over j of weights[i, j] · value[j]
#
# Hint: this is one matrix product.

# %%
import jax.numpy as jnp


def context(weights, value):
    """Average the values with each query's weights: (T, S), (S, d) -> (T, d)."""
    # solution
    return jnp.matmul(weights, value)
    # end


# %% hints
HINTS = (
    "For one query: sum(weights[0, j] * value[j] for j in range(S)).",
    "The sum runs over the keys: the last axis of the weights, the first axis of the values.",
    "weights @ value.",
)
