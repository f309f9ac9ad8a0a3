# %% [markdown]
# # Step 13: attention as large as GPT-2's (the book's exercise 3.3, in our words)
#
# The smallest GPT-2 has vectors of 768 numbers and 12 heads, and all of its heads together are as wide as its vectors.
# Return its attention as a `MultiHeadAttention`, and the number of weights and biases that one such layer has (with
# no bias for queries, keys and values).
#
# Hint: there are four matrices. Which of them has a bias?

# %%
import jaxattn


def gpt2_attention():
    """Return a `jaxattn.MultiHeadAttention` as large as one of GPT-2 small's."""
    # solution
    return jaxattn.MultiHeadAttention(num_heads=12, features=768)
    # end


def number_of_parameters():
    """Return how many numbers the layer's parameters hold."""
    # solution
    return 4 * 768 * 768 + 768
    # end


# %% hints
HINTS = (
    "`features` of MultiHeadAttention is the width of all heads together.",
    "Query, key, value and output projection are 768 × 768 each.",
    "Only the output projection has a bias, of 768 numbers: 4 · 768 · 768 + 768.",
)
