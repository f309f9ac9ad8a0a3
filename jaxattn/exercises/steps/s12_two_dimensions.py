# %% [markdown]
# # Step 12: outputs of another width (the book's exercise 3.2, in our words)
#
# `MultiHeadAttentionWrapper(num_heads, features)` joins its heads side by side, and `features` is the width of one of
# them. Return the wrapper with the given number of heads whose output has the given width.
#
# Hint: two heads of width 2 make an output of width 4. What makes one of width 2?

# %%
import jaxattn


def wrapper_of_width(width, num_heads):
    """Return a `jaxattn.MultiHeadAttentionWrapper` with `num_heads` heads and outputs of `width` numbers."""
    # solution
    return jaxattn.MultiHeadAttentionWrapper(num_heads=num_heads, features=width // num_heads)
    # end


# %% hints
HINTS = (
    "All heads are equally wide.",
    "Their widths add up to the output's.",
    "features=width // num_heads.",
)
