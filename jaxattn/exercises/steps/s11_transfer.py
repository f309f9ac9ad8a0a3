# %% [markdown]
# # Step 11: move weights between two layouts (the book's exercise 3.1, in our words)
#
# The book has two classes with the same mathematics: one holds plain matrices, the other linear layers of PyTorch,
# which store their matrix as (out, in). Turn the linear layers' matrices into the kernels of our `SelfAttention`, which
# are (in, out), so that both modules give the same output.
#
#     linear    {"query": (d_out, d_in), "key": (d_out, d_in), "value": (d_out, d_in)}
#     params    {"query": {"kernel": (d_in, d_out)}, "key": {...}, "value": {...}}
#
# Hint: a linear layer computes x · Wᵀ.

# %%


def transfer(linear):
    """Return the parameters of `jaxattn.SelfAttention` from matrices of linear layers, (d_out, d_in) each."""
    # solution
    return {name: {"kernel": matrix.T} for name, matrix in linear.items()}
    # end


# %% hints
HINTS = (
    "Each kernel is one matrix, transposed.",
    "The result is a dictionary of dictionaries, with the name kernel inside.",
    '{name: {"kernel": matrix.T} for name, matrix in linear.items()}',
)
