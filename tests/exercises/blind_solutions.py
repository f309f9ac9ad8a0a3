"""Wrong solutions, and right ones in unusual styles, written from the templates alone, without a look at the checker.

An entry starts with a line `# function: what the learner did`. For a wrong one, the next line is `# -> ` and a part of
the sentence that must answer it; that line was added once the checker had answered. Its code follows, or, as in a diff,
the lines in which it differs from the right solution in `PLAIN`.
"""

import re
from typing import NamedTuple


class Blind(NamedTuple):
    """One learner's solution."""

    name: str
    did: str
    said: str
    code: str


PLAIN = r"""# parallel_heads: step by step
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / (W**0.5)
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    w = jax.nn.softmax(s, axis=-1)
    o = w @ v
    j = o.swapaxes(0, 1).reshape(T, H * W)
    return j @ w_out + b_out

# decode_step: step by step
def decode_step(x, keys, values, w_query, w_key, w_value):
    q = x @ w_query
    ks = jnp.concatenate([keys, (x @ w_key)[None]])
    vs = jnp.concatenate([values, (x @ w_value)[None]])
    s = ks @ q / jnp.sqrt(q.shape[-1])
    w = jax.nn.softmax(s)
    c = w @ vs
    return c, ks, vs
"""


WRONG = r"""
# raw_scores: divides by the root of the width already
# -> is scaled already
def raw_scores(x):
    T, d = x.shape
    return jnp.dot(x, x.transpose()) / d**0.5

# raw_scores: normalizes the vectors first (cosine similarity)
# -> divides by the vectors' lengths (cosine similarity)
def raw_scores(x):
    unit = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T

# raw_scores: multiplies columns with columns
# -> sums over the tokens in place of the width
def raw_scores(x):
    return jnp.einsum("td,te->de", x, x)

# raw_scores: returns only the last token's scores
# -> returns an array of shape (6,), but (6, 6) is expected
def raw_scores(x):
    out = []
    for token in x:
        out = [jnp.sum(token * other) for other in x]
    return jnp.array(out)

# softmax_rows: sums over the queries
# -> applies softmax over the queries (axis 0)
def softmax_rows(scores):
    e = jnp.exp(scores - jnp.max(scores, axis=0))
    return e / jnp.sum(e, axis=0)

# softmax_rows: subtracts nothing
# -> gives NaN or inf for scores of ±1000, because exp overflows, or a whole row is 0
def softmax_rows(scores):
    top = jnp.exp(scores)
    return top / top.sum(axis=1).reshape(-1, 1)

# softmax_rows: divides by the sum, without exp
# -> divides the scores themselves by their sum
def softmax_rows(scores):
    return jnp.stack([row / row.sum() for row in scores])

# softmax_rows: one sum over the whole matrix
# -> divides by the sum of all entries
def softmax_rows(scores):
    e = jnp.exp(scores - scores.max())
    return e / e.sum()

# softmax_rows: subtracts the maximum of the whole matrix
# -> gives NaN or inf for scores of ±1000, because exp overflows, or a whole row is 0
def softmax_rows(scores):
    e = jnp.exp(scores - jnp.max(scores))
    return e / e.sum(-1, keepdims=True)

# context: weights transposed
# -> sums over the queries
def context(weights, value):
    out = jnp.zeros((weights.shape[1], value.shape[1]))
    for i in range(weights.shape[0]):
        out = out + weights[i][:, None] * value[i]
    return out

# context: averages over the number of keys as well
# -> divides by the number of keys once more
def context(weights, value):
    return jnp.mean(weights[:, :, None] * value[None], axis=1)

# self_attention: not scaled
# -> is not scaled
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    a = jax.nn.softmax(q @ k.T, axis=-1)
    return a @ v

# self_attention: scaled by the root of the model's width
# -> is scaled by the model's width d_in
def self_attention(x, w_query, w_key, w_value):
    d = x.shape[1]
    q, k, v = (jnp.matmul(x, w) for w in (w_query, w_key, w_value))
    return jax.nn.softmax(jnp.matmul(q, k.T) * d**-0.5, -1) @ v

# self_attention: scaled by the width, not its root
# -> divides by d_out, not by its root
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    return jax.nn.softmax(q @ k.T / k.shape[1], -1) @ v

# self_attention: multiplies by the root in place of dividing
# -> multiplies by √d_out
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    return jax.nn.softmax(q @ k.T * jnp.sqrt(k.shape[1]), -1) @ v

# self_attention: softmax over queries
# -> applies softmax over the queries
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    e = jnp.exp(q @ k.T / jnp.sqrt(q.shape[1]))
    return jnp.einsum("ts,sd->td", e / e.sum(0, keepdims=True), v)

# self_attention: query and key swapped
# -> has queries and keys swapped
def self_attention(x, w_query, w_key, w_value):
    keys = x @ w_query
    queries = x @ w_key
    return jax.nn.softmax(queries @ keys.T / jnp.sqrt(keys.shape[1])) @ (x @ w_value)

# self_attention: divides by the root of the number of tokens
# -> is scaled by the number of tokens
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    return jax.nn.softmax(q @ k.T / jnp.sqrt(len(k)), axis=1) @ v

# self_attention: scales after the softmax
# -> scales after the softmax
def self_attention(x, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    return jax.nn.softmax(q @ k.T, axis=1) / jnp.sqrt(k.shape[-1]) @ v

# self_attention: averages keys, not values
# -> averages the keys
def self_attention(x, w_query, w_key, w_value):
    q, k = x @ w_query, x @ w_key
    return jax.nn.softmax(q @ k.T / jnp.sqrt(k.shape[-1]), axis=1) @ k

# self_attention: averages the tokens themselves
# -> averages the tokens themselves
def self_attention(x, w_query, w_key, w_value):
    q, k = x @ w_query, x @ w_key
    return jax.nn.softmax(q @ k.T / jnp.sqrt(k.shape[-1]), axis=1) @ x

# self_attention: no softmax
# -> has no softmax
def self_attention(x, w_query, w_key, w_value):
    return (x @ w_query) @ (x @ w_key).T / jnp.sqrt(w_key.shape[1]) @ (x @ w_value)

# causal_mask: inverted (True = masked, as in PyTorch)
# -> is inverted
def causal_mask(T):
    return jnp.arange(T)[None, :] > jnp.arange(T)[:, None]

# causal_mask: the upper triangle
# -> has rows and columns swapped (an upper triangle)
def causal_mask(T):
    return jnp.array([[j >= i for j in range(T)] for i in range(T)])

# causal_mask: off by one, no token sees itself
# -> is off by one: a token may attend to itself
def causal_mask(T):
    i, j = jnp.indices((T, T))
    return j < i

# causal_mask: off by one, sees the next token
# -> is off by one: it lets each token attend to the next one
def causal_mask(T):
    return jnp.array([[j <= i + 1 for j in range(T)] for i in range(T)])

# causal_mask: numbers, not booleans
# -> is of type float32, but must be bool, so that jnp.where can use it
def causal_mask(T):
    return jnp.tril(jnp.ones((T, T)))

# masked_weights: masks what is allowed
# -> has the mask inverted
def masked_weights(scores, mask):
    return jax.nn.softmax(jnp.where(mask, -1e30, scores))

# masked_weights: NaN in rows that attend to nothing
# -> gives NaN in a row that may attend to nothing, as 0 / 0
def masked_weights(scores, mask):
    s = scores + jnp.where(mask, 0, -jnp.inf)
    return jax.nn.softmax(s, axis=1)

# masked_weights: multiplies scores by the mask, so masked ones are 0 and not -inf
# -> sets masked scores to 0, which still gets weight, because exp(0) = 1; use a large negative number
def masked_weights(scores, mask):
    return jax.nn.softmax(scores * mask.astype(scores.dtype), axis=-1)

# masked_weights: uniform weights in rows that attend to nothing
# -> gives equal weights in a row that may attend to nothing
def masked_weights(scores, mask):
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)

# masked_weights: masks after the softmax, with no renormalization
# -> masks after the softmax and lacks the renormalisation
def masked_weights(scores, mask):
    return jax.nn.softmax(scores, axis=-1) * mask

# masked_weights: softmax over queries
# -> applies softmax over the queries
def masked_weights(scores, mask):
    s = jnp.where(mask, scores, -1e30)
    return jnp.where(mask, jax.nn.softmax(s, axis=0), 0)

# masked_weights: ignores the mask given and uses a triangle
# -> uses a triangle of its own
def masked_weights(scores, mask):
    T, S = scores.shape
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, S), bool)), scores, -1e30), axis=-1)

# renormalized_weights: missing renormalization
# -> lacks the renormalisation
def renormalized_weights(weights, mask):
    return jnp.where(mask, weights, jnp.zeros_like(weights))

# renormalized_weights: 0/0 in rows that attend to nothing
# -> gives NaN in a row that may attend to nothing, as 0 / 0
def renormalized_weights(weights, mask):
    w = weights * mask
    return w / w.sum(axis=1, keepdims=True)

# renormalized_weights: softmax once more
# -> applies softmax a second time, to weights that are 0 where masked
def renormalized_weights(weights, mask):
    return jax.nn.softmax(weights * mask, axis=-1)

# renormalized_weights: each column sums to 1
# -> divides by the sums of the columns
def renormalized_weights(weights, mask):
    w = jnp.where(mask, weights, 0.0)
    s = w.sum(axis=0, keepdims=True)
    return w / jnp.where(s == 0, 1.0, s)

# renormalized_weights: right weights, NaN gradient through where
# -> has the right numbers, but a gradient of NaN at [1, 0], through the mask
def renormalized_weights(weights, mask):
    kept = weights * mask
    total = kept.sum(-1, keepdims=True)
    return jnp.where(total > 0, kept / total, 0.0)

# renormalized_weights: keeps what is masked
# -> has the mask inverted
def renormalized_weights(weights, mask):
    w = jnp.where(mask, 0.0, weights)
    s = w.sum(-1, keepdims=True)
    return w / jnp.where(s > 0, s, 1.0)

# dropout: survivors times 1/p
# -> multiplies the survivors by 1 / rate
def dropout(weights, rate, key):
    keep = jax.random.uniform(key, weights.shape) > rate
    return weights * keep / rate

# dropout: survivors not rescaled
# -> does not rescale the survivors
def dropout(weights, rate, key):
    return weights * jax.random.bernoulli(key, p=1.0 - rate, shape=weights.shape)

# dropout: survivors times 1 - rate
# -> multiplies the survivors by 1 - rate
def dropout(weights, rate, key):
    return (1 - rate) * weights * jax.random.bernoulli(key, 1.0 - rate, weights.shape)

# dropout: keeps with probability rate
# -> keeps each weight with probability rate
def dropout(weights, rate, key):
    kept = jax.random.bernoulli(key, rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0.0)

# dropout: a key of its own, always the same
# -> drops the same entries with every key
def dropout(weights, rate, key):
    kept = jax.random.bernoulli(jax.random.PRNGKey(123), 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0.0)

# dropout: drops whole keys for all queries
# -> drops the same entries in every row
def dropout(weights, rate, key):
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape[1:])
    return jnp.where(kept, weights / (1 - rate), 0.0)

# dropout: lets each row sum to 1 again
# -> lets each row sum to 1 again
def dropout(weights, rate, key):
    w = weights * jax.random.bernoulli(key, 1 - rate, weights.shape)
    return w / jnp.maximum(w.sum(-1, keepdims=True), 1e-9)

# dropout: NumPy's random numbers
# -> drops other entries each time, although the key is the same
def dropout(weights, rate, key):
    import numpy as np
    kept = np.random.rand(*weights.shape) >= rate
    return weights * kept / (1 - rate)

# batched_attention: one key for all examples
# -> uses one key for all examples, so that all drop the same entries
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return jnp.stack([causal_attention(e, w_query, w_key, w_value, rate, key) for e in x])

# batched_attention: all examples as one long sequence
# -> joins the examples to one long sequence
def batched_attention(x, w_query, w_key, w_value, rate, key):
    B, T, d = x.shape
    return causal_attention(x.reshape(B * T, d), w_query, w_key, w_value, rate, key).reshape(B, T, -1)

# batched_attention: maps over the matrices as well
# -> vmap got inconsistent sizes
def batched_attention(x, w_query, w_key, w_value, rate, key):
    keys = jax.random.split(key, x.shape[0])
    return jax.vmap(causal_attention, in_axes=(0, 0, 0, 0, None, 0))(x, w_query, w_key, w_value, rate, keys)

# batched_attention: maps over the tokens
# -> maps over the tokens in place of the examples
def batched_attention(x, w_query, w_key, w_value, rate, key):
    keys = jax.random.split(key, x.shape[1])
    f = lambda e, k: causal_attention(e, w_query, w_key, w_value, rate, k)
    return jax.vmap(f, in_axes=(1, 0), out_axes=1)(x, keys)

# batched_attention: no dropout
# -> drops nothing, or the same with every key
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return jax.vmap(lambda e: causal_attention(e, w_query, w_key, w_value, 0.0, key))(x)

# batched_attention: ignores the key
# -> drops nothing, or the same with every key
def batched_attention(x, w_query, w_key, w_value, rate, key):
    keys = [jax.random.key(i) for i in range(len(x))]
    return jnp.stack([causal_attention(e, w_query, w_key, w_value, rate, k) for e, k in zip(x, keys)])

# stacked_heads: one key for all heads
# -> uses one key for all heads, so that all drop the same entries
def stacked_heads(x, heads, rate, key):
    return jnp.concatenate([causal_attention(x, *h, rate, key) for h in heads], axis=-1)

# stacked_heads: joins heads one below the other
# -> joins the heads along the tokens
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, q, k, v, rate, r) for (q, k, v), r in zip(heads, keys)])

# stacked_heads: last head first
# -> joins the heads in the wrong order
def stacked_heads(x, heads, rate, key):
    out = jnp.zeros((x.shape[0], 0))
    for h in heads:
        key, sub = jax.random.split(key)
        out = jnp.hstack([causal_attention(x, *h, rate, sub), out])
    return out

# stacked_heads: interleaves the heads
# -> interleaves the heads' features
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    outs = [causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)]
    return jnp.stack(outs, axis=-1).reshape(x.shape[0], -1)

# stacked_heads: adds the heads up
# -> adds the heads up
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return sum(causal_attention(x, *h, rate, k) for h, k in zip(heads, keys))

# stacked_heads: stacks (H, T, D) and reshapes with no transpose
# -> mixes tokens and heads up
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    outs = jnp.stack([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)])
    return outs.reshape(x.shape[0], -1)

# stacked_heads: uses the first head for all
# -> uses the first head every time
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, *heads[0], rate, k) for k in keys], axis=1)

# parallel_heads: reshapes to (H, T, D) at once
# -> splits with the view before the transpose left out
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = x.shape[0]
    q, k, v = [(x @ w).reshape(num_heads, T, -1) for w in (w_query, w_key, w_value)]
    s = q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T))) == 1, s, -jnp.inf))
    return (w @ v).swapaxes(0, 1).reshape(T, -1) @ w_out + b_out

# parallel_heads: joins with no transpose back
# -> joins without the transpose
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = x.shape[0]
    q, k, v = [(x @ w).reshape(T, num_heads, -1).transpose(1, 0, 2) for w in (w_query, w_key, w_value)]
    s = q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T))) == 1, s, -jnp.inf))
    return (w @ v).reshape(T, -1) @ w_out + b_out

# parallel_heads: view before transpose, both when splitting and when joining
# -> splits and joins without a transpose
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = x.shape[0]
    q, k, v = [(x @ w).reshape(num_heads, T, -1) for w in (w_query, w_key, w_value)]
    s = q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T))) == 1, s, -jnp.inf))
    return (w @ v).reshape(T, -1) @ w_out + b_out

# parallel_heads: output projection missing
# -> lacks the output projection
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = len(x)
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1)

# parallel_heads: output bias missing
# -> lacks the output projection's bias
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = len(x)
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out

# parallel_heads: scaled by the width of all heads together
# -> is scaled by the width of all heads
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T = len(x)
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / w_key.shape[1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: scaled by the width of the input
# -> is scaled by the model's width d_in
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / d**0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: not scaled
# -> is not scaled
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k)
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: no mask
# -> has no mask, and so leaks the future
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(s), v).reshape(T, -1) @ w_out + b_out

# parallel_heads: mask inverted
# -> has the mask inverted
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), -1e9, s)
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(s), v).reshape(T, -1) @ w_out + b_out

# parallel_heads: upper triangle
# -> has the mask upside down (an upper triangle)
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    s = jnp.where(jnp.triu(jnp.ones((T, T), bool)), s, -1e9)
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(s), v).reshape(T, -1) @ w_out + b_out

# parallel_heads: the mask lets the next token through
# -> has a mask that is off by one, which lets tokens attend to the next one
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    s = s - 1e9 * jnp.triu(jnp.ones((T, T)), 2)
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(s), v).reshape(T, -1) @ w_out + b_out

# parallel_heads: splits the columns as (D, H)
# -> splits to (T, D, H) and joins the same way
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, -1, num_heads) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("tdh,sdh->hts", q, k) / q.shape[1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,sdh->tdh", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: joins widths before heads
# -> interleaves the heads when it joins them
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->tdh", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: softmax over queries
# -> applies softmax over the queries
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9), axis=1)
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: softmax over heads
# -> applies softmax over the heads
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9), axis=0)
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: last head first
# -> concatenates the heads in the wrong order
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e9))
    return jnp.einsum("hts,shd->thd", w, v)[:, ::-1].reshape(T, -1) @ w_out + b_out

# parallel_heads: masks after the softmax, no renormalization
# -> masks after the softmax and lacks the renormalisation
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [(x @ w).reshape(T, num_heads, -1) for w in (w_query, w_key, w_value)]
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jnp.tril(jax.nn.softmax(s))
    return jnp.einsum("hts,shd->thd", w, v).reshape(T, -1) @ w_out + b_out

# parallel_heads: one head of the whole width
# -> attends with one wide head
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, d = x.shape
    q, k, v = [x @ w for w in (w_query, w_key, w_value)]
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), q @ k.T / q.shape[-1] ** 0.5, -1e9))
    return w @ v @ w_out + b_out

# parallel_heads: bfloat16 weights, as in a real model
# -> is expected
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    q, k, v = ((x @ w).reshape(len(x), num_heads, -1) for w in (w_query, w_key, w_value))
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((len(x), len(x)), bool)), s, -1e9)).astype(jnp.bfloat16)
    return jnp.einsum("hts,shd->thd", w, v).reshape(len(x), -1) @ w_out + b_out

# decode_step: attends to the old tokens alone
# -> leaves the newest token out
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    w = jax.nn.softmax(keys @ q / jnp.sqrt(q.shape[0]))
    return w @ values, jnp.vstack([keys, k]), jnp.vstack([values, v])

# decode_step: puts the newest token first
# -> adds the newest token at the front of the cache
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    keys, values = jnp.vstack([k, keys]), jnp.vstack([v, values])
    return jax.nn.softmax(keys @ q / jnp.sqrt(q.shape[0])) @ values, keys, values

# decode_step: not scaled
# -> is not scaled
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    keys, values = jnp.vstack([keys, k]), jnp.vstack([values, v])
    return jax.nn.softmax(keys @ q) @ values, keys, values

# decode_step: scaled by the model's width
# -> is scaled by the model's width d_in
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    keys, values = jnp.vstack([keys, k]), jnp.vstack([values, v])
    return jax.nn.softmax(keys @ q / jnp.sqrt(x.size)) @ values, keys, values

# decode_step: returns (1, d_out)
# -> returns the context as a row (1, d_out)
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x[None] @ w_query, x[None] @ w_key, x[None] @ w_value
    keys, values = jnp.concatenate([keys, k]), jnp.concatenate([values, v])
    return jax.nn.softmax(q @ keys.T / jnp.sqrt(q.shape[-1])) @ values, keys, values

# decode_step: returns the cache as it was
# -> returns the old cache
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    ks, vs = jnp.vstack([keys, k]), jnp.vstack([values, v])
    return jax.nn.softmax(ks @ q / jnp.sqrt(q.shape[0])) @ vs, keys, values

# decode_step: returns values before keys
# -> has keys and values swapped in the results
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    keys, values = jnp.vstack([keys, k]), jnp.vstack([values, v])
    return jax.nn.softmax(keys @ q / jnp.sqrt(q.shape[0])) @ values, values, keys

# decode_step: overwrites the last token's entry
# -> replaces the last token in the cache
def decode_step(x, keys, values, w_query, w_key, w_value):
    q, k, v = x @ w_query, x @ w_key, x @ w_value
    keys, values = jnp.vstack([keys[:-1], k]), jnp.vstack([values[:-1], v])
    return jax.nn.softmax(keys @ q / jnp.sqrt(q.shape[0])) @ values, keys, values

# transfer: not transposed
# -> is not transposed
def transfer(linear):
    return {name: {"kernel": matrix} for name, matrix in linear.items()}

# transfer: reshaped in place of transposed
# -> reshapes in place of transposing, which mixes the numbers up
def transfer(linear):
    return {name: {"kernel": matrix.reshape(matrix.shape[::-1])} for name, matrix in linear.items()}

# transfer: query and key swapped
# -> has query and key swapped
def transfer(linear):
    q, k, v = linear["key"].T, linear["query"].T, linear["value"].T
    return {"query": {"kernel": q}, "key": {"kernel": k}, "value": {"kernel": v}}

# transfer: no "kernel"
# -> lacks the level of the kernel
def transfer(linear):
    return {name: matrix.T for name, matrix in linear.items()}

# transfer: under "params"
# -> has the level params, which apply adds
def transfer(linear):
    return {"params": {name: {"kernel": matrix.T} for name, matrix in linear.items()}}

# wrapper_of_width: features is the width in total
# -> makes heads as wide as the whole output
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(num_heads, width)

# wrapper_of_width: arguments swapped
# -> has the numbers of heads and features swapped
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(width // num_heads, num_heads)

# wrapper_of_width: one head
# -> has one head
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(num_heads=1, features=width)

# wrapper_of_width: true division
# -> has features=1.0, but a whole number is needed
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(num_heads, width / num_heads)

# gpt2_attention: features of one head
# -> has features for one head
def gpt2_attention():
    return jaxattn.MultiHeadAttention(num_heads=12, features=64)

# gpt2_attention: the wrapper
# -> returns a MultiHeadAttentionWrapper, but a jaxattn.MultiHeadAttention is asked for
def gpt2_attention():
    return jaxattn.MultiHeadAttentionWrapper(num_heads=12, features=64)

# gpt2_attention: arguments swapped
# -> has the numbers of heads and features swapped
def gpt2_attention():
    return jaxattn.MultiHeadAttention(768, 12)

# number_of_parameters: no bias
# -> leaves out the output projection's bias
def number_of_parameters():
    return 4 * 768**2

# number_of_parameters: a bias for each matrix
# -> counts a bias for queries, keys and values, which this layer does not have
def number_of_parameters():
    return 4 * (768**2 + 768)

# number_of_parameters: the output projection forgotten
# -> leaves out the output projection
def number_of_parameters():
    return 3 * 768 * 768

# number_of_parameters: three matrices and a bias
# -> leaves out the output projection's matrix
def number_of_parameters():
    return 3 * 768 * 768 + 768

# raw_scores: prints and returns nothing
# -> returns nothing
def raw_scores(x):
    print(x @ x.T)

# softmax_rows: exits
# -> raises SystemExit: done
def softmax_rows(scores):
    import sys
    sys.exit("done")

# context: a misspelt name
# -> raises NameError: name 'weigths' is not defined
def context(weights, value):
    return weigths @ value

# context: returns a list
# -> returns a list
def context(weights, value):
    return [[float(sum(w * v for w, v in zip(row, col))) for col in value.T] for row in weights]

# self_attention: takes too few arguments
# -> raises TypeError: self_attention() takes 3 positional arguments but 4 were given
def self_attention(x, w_query, w_key):
    return x

# dropout: returns words
# -> returns what cannot be checked
def dropout(weights, rate, key):
    return "kept"

# masked_weights: masked scores are 0, and the last rows of a mask that is no square raise
# -> sets masked scores to 0
def masked_weights(scores, mask):
    T, S = scores.shape
    return jnp.stack([jax.nn.softmax(scores[i] * mask[i]) for i in range(T)]) @ jnp.eye(T)

# causal_mask: rows of different lengths, up to the diagonal
# -> returns a list
def causal_mask(T):
    return [[True] * (i + 1) for i in range(T)]

# dropout: draws once for all weights
# -> drops all weights or none: draw for each entry
def dropout(weights, rate, key):
    return jnp.where(jax.random.bernoulli(key, 1 - rate), weights / (1 - rate), 0)

# dropout: drops to minus infinity
# -> a dropped weight is 0
def dropout(weights, rate, key):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, weights.shape), weights / (1 - rate), -jnp.inf)

# dropout: returns the mask
# -> returns which weights are kept
def dropout(weights, rate, key):
    return jax.random.bernoulli(key, 1 - rate, weights.shape)

# dropout: returns the mask, too
# -> returns 2 results: return the weights alone
def dropout(weights, rate, key):
    m = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return weights * m / (1 - rate), m

# dropout: loses what at[...].set returns
# -> returns a new array
def dropout(weights, rate, key):
    weights.at[jax.random.bernoulli(key, rate, weights.shape)].set(0)
    return weights / (1 - rate)

# batched_attention: maps a single key
# -> and split a key into one for each example
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return jax.vmap(causal_attention, in_axes=(0, None, None, None, None, 0))(x, w_query, w_key, w_value, rate, key)

# batched_attention: forgets vmap
# -> .T reverses all axes
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return causal_attention(x, w_query, w_key, w_value, rate, key)

# batched_attention: concatenates the examples
# -> joins the examples along the tokens
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return jnp.concatenate(
        [causal_attention(e, w_query, w_key, w_value, rate, k) for e, k in zip(x, jax.random.split(key, len(x)))]
    )

# stacked_heads: concatenates the matrices
# -> attends with one wide head
def stacked_heads(x, heads, rate, key):
    q = jnp.concatenate([h[0] for h in heads], axis=1)
    k = jnp.concatenate([h[1] for h in heads], axis=1)
    val = jnp.concatenate([h[2] for h in heads], axis=1)
    return causal_attention(x, q, k, val, rate, key)

# stacked_heads: takes w_key for w_query
# -> has queries and keys swapped
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate(
        [causal_attention(x, wk, wq, wv, rate, k) for (wq, wk, wv), k in zip(heads, keys)], axis=-1
    )

# stacked_heads: takes w_value for w_key
# -> has keys and values swapped
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate(
        [causal_attention(x, wq, wv, wk, rate, k) for (wq, wk, wv), k in zip(heads, keys)], axis=-1
    )

# stacked_heads: transposes at last
# -> returns an array of shape (12, 5), but (5, 12) is expected
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)], axis=-1).T

# stacked_heads: ends in a comma
# -> returns ((5, 12),), but an array of shape (5, 12)
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return (jnp.concatenate([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)], axis=-1),)

# stacked_heads: passes all keys to each head
# -> Give each call one of the keys
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, x.shape[0])
    return jnp.concatenate([causal_attention(x, *h, rate, keys) for h in heads], axis=-1)

# stacked_heads: leaves the template's line at the end
# -> still has the line raise NotImplementedError
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    out = jnp.concatenate([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)], axis=-1)
    raise NotImplementedError  # your code here

# stacked_heads: leaves the template's line at the start
# -> still has the line raise NotImplementedError
def stacked_heads(x, heads, rate, key):
    raise NotImplementedError  # your code here
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)], axis=-1)

# stacked_heads: rescales once more
# -> by another factor than 1 / (1 - rate)
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, *h, rate, k) / (1 - rate) for h, k in zip(heads, keys)], axis=-1)

# stacked_heads: swaps rate and key
# -> look at the order of the arguments
def stacked_heads(x, heads, rate, key):
    keys = jax.random.split(key, len(heads))
    return jnp.concatenate([causal_attention(x, *h, k, rate) for h, k in zip(heads, keys)], axis=-1)

# stacked_heads: calls cat, as in PyTorch
# -> Join arrays with jnp.concatenate
def stacked_heads(x, heads, rate, key):
    return jnp.cat(
        [causal_attention(x, *h, rate, k) for h, k in zip(heads, jax.random.split(key, len(heads)))], dim=-1
    )

# stacked_heads: says dim, as in PyTorch
# -> JAX says axis
def stacked_heads(x, heads, rate, key):
    return jnp.concatenate(
        [causal_attention(x, *h, rate, k) for h, k in zip(heads, jax.random.split(key, len(heads)))], dim=-1
    )

# parallel_heads: divides by the root of the number of tokens
# -> is scaled by the number of tokens
-    s = q @ k.swapaxes(1, 2) / (W**0.5)
+    s = q @ k.swapaxes(1, 2) / (T**0.5)

# parallel_heads: multiplies by the root
# -> multiplies by √D
-    s = q @ k.swapaxes(1, 2) / (W**0.5)
+    s = q @ k.swapaxes(1, 2) / (1 / W**0.5)

# parallel_heads: forgets softmax
# -> has no softmax
-    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
-    w = jax.nn.softmax(s, axis=-1)
+    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, 0)
+    w = s

# parallel_heads: takes w_key for w_query
# -> has queries and keys swapped
-    q, k, v = split(w_query), split(w_key), split(w_value)
+    q, k, v = split(w_key), split(w_query), split(w_value)

# parallel_heads: takes w_key for w_value
# -> averages the keys
-    q, k, v = split(w_query), split(w_key), split(w_value)
+    q, k, v = split(w_query), split(w_key), split(w_key)

# parallel_heads: writes 2 for num_heads
# -> is right with 2 heads, but not with 4
-    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
+    T, H, W = x.shape[0], 2, w_query.shape[1] // 2

# parallel_heads: adds an axis in front
# -> returns an array of shape (1, 5, 7)
-    return j @ w_out + b_out
+    return (j @ w_out + b_out)[None]

# parallel_heads: returns the weights, too
# -> returns ((5, 7), (2, 5, 5)), but an array of shape (5, 7)
-    return j @ w_out + b_out
+    return j @ w_out + b_out, w

# parallel_heads: transposes all axes of the keys
# -> .T reverses all axes
-    s = q @ k.swapaxes(1, 2) / (W**0.5)
+    s = q @ k.T / (W**0.5)

# parallel_heads: forgets to swap tokens and heads
# -> swap (T, H, D) to (H, T, D) first
-    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
+    split = lambda w: (x @ w).reshape(T, H, W)

# parallel_heads: attends over the heads
# -> attends from head to head within a token
-    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
+    split = lambda w: (x @ w).reshape(T, H, W)
-    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
+    s = jnp.where(True, s, -jnp.inf)
-    j = o.swapaxes(0, 1).reshape(T, H * W)
+    j = o.reshape(T, H * W)

# parallel_heads: divides with one slash
# -> Divide with //
-    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
+    T, H, W = x.shape[0], num_heads, w_query.shape[1] / num_heads

# parallel_heads: calls transpose, as in PyTorch
# -> Name all axes
-    s = q @ k.swapaxes(1, 2) / (W**0.5)
+    s = q @ k.transpose(1, 2) / W**0.5
-    j = o.swapaxes(0, 1).reshape(T, H * W)
-    return j @ w_out + b_out
+    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# parallel_heads: calls view, as in PyTorch
# -> Write x.reshape
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).view(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / W**0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    w = jax.nn.softmax(s, axis=-1)
    o = w @ v
    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# parallel_heads: calls masked_fill, as in PyTorch
# -> Write jnp.where(mask
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / W**0.5
    s = s.masked_fill(jnp.triu(jnp.ones((T, T), bool), 1), -jnp.inf)
    w = jax.nn.softmax(s, axis=-1)
    o = w @ v
    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# parallel_heads: calls size, as in PyTorch
# -> Leave the () out
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.size(0), num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / W**0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    w = jax.nn.softmax(s, axis=-1)
    o = w @ v
    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# parallel_heads: takes softmax from jnp
# -> jax.nn.softmax
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / W**0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    w = jnp.softmax(s)
    o = w @ v
    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# parallel_heads: calls PyTorch itself
# -> in place of PyTorch
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    T, H, W = x.shape[0], num_heads, w_query.shape[1] // num_heads
    split = lambda w: (x @ w).reshape(T, H, W).swapaxes(0, 1)
    q, k, v = split(w_query), split(w_key), split(w_value)
    s = q @ k.swapaxes(1, 2) / W**0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    w = torch.softmax(s, dim=-1)
    o = w @ v
    return o.swapaxes(0, 1).reshape(T, H * W) @ w_out + b_out

# decode_step: masks the newest token
# -> leaves the newest token out
-    s = ks @ q / jnp.sqrt(q.shape[-1])
+    s = jnp.where(jnp.arange(len(ks)) < len(ks) - 1, ks @ q / jnp.sqrt(q.shape[-1]), -1e9)

# decode_step: takes the first row of the causal mask
# -> attends to the first token alone
-    s = ks @ q / jnp.sqrt(q.shape[-1])
+    s = jnp.where(jnp.tril(jnp.ones((1, len(ks)), bool))[0], ks @ q / jnp.sqrt(q.shape[-1]), -1e9)

# decode_step: puts the newest key first
# -> as its second result
-    ks = jnp.concatenate([keys, (x @ w_key)[None]])
+    ks = jnp.concatenate([(x @ w_key)[None], keys])

# decode_step: returns the old values
# -> as its third result
-    return c, ks, vs
+    return c, ks, values

# decode_step: returns the context last
# -> returns keys and values first
-    return c, ks, vs
+    return ks, vs, c

# decode_step: divides by the width
# -> divides by d_out, not by its root
-    s = ks @ q / jnp.sqrt(q.shape[-1])
+    s = ks @ q / q.shape[-1]

# decode_step: forgets softmax
# -> has no softmax
-    w = jax.nn.softmax(s)
+    w = s

# decode_step: takes w_value for w_key
# -> has keys and values swapped
-    ks = jnp.concatenate([keys, (x @ w_key)[None]])
-    vs = jnp.concatenate([values, (x @ w_value)[None]])
+    ks = jnp.concatenate([keys, (x @ w_value)[None]])
+    vs = jnp.concatenate([values, (x @ w_key)[None]])

# decode_step: drops the oldest token
# -> drops the oldest token from the cache
-    ks = jnp.concatenate([keys, (x @ w_key)[None]])
-    vs = jnp.concatenate([values, (x @ w_value)[None]])
+    ks = jnp.roll(keys, -1, 0).at[-1].set(x @ w_key)
+    vs = jnp.roll(values, -1, 0).at[-1].set(x @ w_value)

# decode_step: takes softmax over a single number
# -> gives every token the weight 1
-    w = jax.nn.softmax(s)
+    w = jax.nn.softmax(s[:, None], axis=-1)[:, 0]

# decode_step: appends as to a list
# -> Join arrays with jnp.concatenate
def decode_step(x, keys, values, w_query, w_key, w_value):
    keys.append(x @ w_key)
    values.append(x @ w_value)
    return jax.nn.softmax(keys @ (x @ w_query)) @ values, keys, values

# decode_step: appends a vector
# -> Write v[None]
-    ks = jnp.concatenate([keys, (x @ w_key)[None]])
+    ks = jnp.concatenate([keys, x @ w_key])

# transfer: swaps key and value
# -> has key and value swapped
def transfer(linear):
    return {
        "query": {"kernel": linear["query"].T},
        "key": {"kernel": linear["value"].T},
        "value": {"kernel": linear["key"].T},
    }

# wrapper_of_width: names the wrong one
# -> as features, but
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(num_heads=width, features=num_heads)

# gpt2_attention: adds biases
# -> as use_bias, but 0 is expected
def gpt2_attention():
    return jaxattn.MultiHeadAttention(12, 768, use_bias=True)

# gpt2_attention: makes one head
# -> returns 1 as num_heads, but 12 is expected
def gpt2_attention():
    return jaxattn.MultiHeadAttention(1, 768)

# number_of_parameters: counts a bias of one head
# -> returns 2359360, but 2360064 is expected
def number_of_parameters():
    return 4 * 768 * 768 + 64

# number_of_parameters: rounds
# -> returns 2360000, but 2360064 is expected
def number_of_parameters():
    return 2_360_000

# number_of_parameters: returns text
# -> returns a str that holds no numbers
def number_of_parameters():
    return "2360064"
"""

RIGHT = r"""
# raw_scores: list comprehension with NumPy
def raw_scores(x):
    import numpy as np
    x = np.asarray(x)
    return np.array([[float(a @ b) for b in x] for a in x])

# raw_scores: fori_loop that fills rows
def raw_scores(x):
    T = x.shape[0]
    return jax.lax.fori_loop(0, T, lambda i, out: out.at[i].set(x @ x[i]), jnp.zeros((T, T)))

# softmax_rows: logsumexp
def softmax_rows(scores):
    return jnp.exp(scores - jax.scipy.special.logsumexp(scores, axis=-1, keepdims=True))

# softmax_rows: scan over rows
def softmax_rows(scores):
    def row(_, s):
        e = jnp.exp(s - s.max())
        return None, e / e.sum()
    return jax.lax.scan(row, None, scores)[1]

# context: scan over keys
def context(weights, value):
    def add(total, wv):
        w, v = wv
        return total + jnp.outer(w, v), None
    return jax.lax.scan(add, jnp.zeros((weights.shape[0], value.shape[1])), (weights.T, value))[0]

# context: NumPy in float64
def context(weights, value):
    import numpy as np
    return np.asarray(weights, np.float64) @ np.asarray(value, np.float64)

# self_attention: lax.map over queries
def self_attention(x, w_query, w_key, w_value):
    k, v = x @ w_key, x @ w_value
    return jax.lax.map(lambda q: jax.nn.softmax(k @ q * len(q) ** -0.5) @ v, x @ w_query)

# self_attention: the library's own function
def self_attention(x, w_query, w_key, w_value):
    import jaxattn
    q, k, v = ((x @ w)[:, None] for w in (w_query, w_key, w_value))
    return jaxattn.dot_product_attention(q, k, v)[:, 0]

# self_attention: scales the query first, with NumPy
def self_attention(x, w_query, w_key, w_value):
    import numpy as np
    x, a, b, c = map(np.asarray, (x, w_query, w_key, w_value))
    s = (x @ a / np.sqrt(a.shape[1])) @ (x @ b).T
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True) @ (x @ c)

# self_attention: Flax dense layers
def self_attention(x, w_query, w_key, w_value):
    import flax.linen as nn
    d = w_query.shape[1]
    q, k, v = (nn.Dense(d, use_bias=False).apply({"params": {"kernel": w}}, x) for w in (w_query, w_key, w_value))
    return nn.dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]

# causal_mask: NumPy
def causal_mask(T):
    import numpy as np
    return ~np.triu(np.ones((T, T), bool), 1)

# causal_mask: nested lists of truth values in an array
def causal_mask(T):
    return jnp.array([[key <= query for key in range(T)] for query in range(T)])

# masked_weights: exp and a safe sum
def masked_weights(scores, mask):
    high = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e30)
    e = jnp.where(mask, jnp.exp(jnp.where(mask, scores - high, 0.0)), 0.0)
    total = e.sum(-1, keepdims=True)
    return e / jnp.where(total == 0, 1, total)

# masked_weights: softmax with where
def masked_weights(scores, mask):
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), 0.0)

# masked_weights: a softmax of -inf, with its NaN replaced
def masked_weights(scores, mask):
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.where(mask, weights, 0.0)

# renormalized_weights: row by row
def renormalized_weights(weights, mask):
    rows = []
    for w, m in zip(weights, mask):
        w = w * m
        rows.append(w / jnp.where(w.sum() > 0, w.sum(), 1))
    return jnp.stack(rows)

# dropout: uniform numbers
def dropout(weights, rate, key):
    return jnp.where(jax.random.uniform(key, weights.shape) >= rate, weights, 0) / (1 - rate)

# dropout: a key for each row
def dropout(weights, rate, key):
    keys = jax.random.split(key, weights.shape[0])
    drop = lambda w, k: w * jax.random.bernoulli(k, 1 - rate, w.shape) / (1 - rate)
    return jax.vmap(drop)(weights, keys)

# dropout: Flax
def dropout(weights, rate, key):
    import flax.linen as nn
    return nn.Dropout(rate, deterministic=False).apply({}, weights, rngs={"dropout": key})

# batched_attention: scan with a carried key
def batched_attention(x, w_query, w_key, w_value, rate, key):
    def one(key, e):
        key, sub = jax.random.split(key)
        return key, causal_attention(e, w_query, w_key, w_value, rate, sub)
    return jax.lax.scan(one, key, x)[1]

# batched_attention: fold_in
def batched_attention(x, w_query, w_key, w_value, rate, key):
    keys = [jax.random.fold_in(key, i) for i in range(len(x))]
    return jnp.stack([causal_attention(e, w_query, w_key, w_value, rate, k) for e, k in zip(x, keys)])

# stacked_heads: a carried key and hstack
def stacked_heads(x, heads, rate, key):
    out = []
    for h in heads:
        key, sub = jax.random.split(key)
        out.append(causal_attention(x, *h, rate, sub))
    return jnp.hstack(out)

# stacked_heads: vmap over stacked matrices
def stacked_heads(x, heads, rate, key):
    q, k, v = (jnp.stack(m) for m in zip(*heads))
    out = jax.vmap(causal_attention, (None, 0, 0, 0, None, 0), 1)(x, q, k, v, rate, jax.random.split(key, len(heads)))
    return out.reshape(len(x), -1)

# parallel_heads: loop over heads with slices
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    D = w_query.shape[1] // num_heads
    mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
    total = b_out
    for h in range(num_heads):
        c = slice(h * D, h * D + D)
        s = (x @ w_query[:, c]) @ (x @ w_key[:, c]).T / D**0.5
        w = jax.nn.softmax(jnp.where(mask, s, -jnp.inf))
        total = total + w @ (x @ w_value[:, c]) @ w_out[c]
    return total

# parallel_heads: jax.nn.dot_product_attention
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    q, k, v = ((x @ w).reshape(len(x), num_heads, -1) for w in (w_query, w_key, w_value))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(len(x), -1) @ w_out + b_out

# decode_step: einsum on appended arrays
def decode_step(x, keys, values, w_query, w_key, w_value):
    q = jnp.einsum("i,io->o", x, w_query)
    keys = jnp.append(keys, (x @ w_key)[None], axis=0)
    values = jnp.append(values, (x @ w_value)[None], axis=0)
    w = jax.nn.softmax(jnp.einsum("d,sd->s", q, keys) * q.shape[0] ** -0.5)
    return jnp.einsum("s,sd->d", w, values), keys, values

# transfer: NumPy arrays
def transfer(linear):
    import numpy as np
    return {n: dict(kernel=np.transpose(linear[n])) for n in ("query", "key", "value")}

# wrapper_of_width: keywords
def wrapper_of_width(width, num_heads):
    return jaxattn.MultiHeadAttentionWrapper(features=width // num_heads, num_heads=num_heads)

# gpt2_attention: positional
def gpt2_attention():
    return jaxattn.MultiHeadAttention(12, 768)

# number_of_parameters: counted from the shapes
def number_of_parameters():
    shapes = jax.eval_shape(lambda: jaxattn.MultiHeadAttention(12, 768).init(jax.random.key(0), jnp.ones((1, 2, 768))))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

# dropout: loops over single weights
def dropout(weights, rate, key):
    rows = []
    for row, k in zip(weights, jax.random.split(key, weights.shape[0])):
        keep = jax.random.bernoulli(k, 1 - rate, row.shape)
        rows.append(jnp.array([w / (1 - rate) if k else 0.0 for w, k in zip(row, keep)]))
    return jnp.stack(rows)

# batched_attention: jax.lax.map
def batched_attention(x, w_query, w_key, w_value, rate, key):
    return jax.lax.map(
        lambda a: causal_attention(a[0], w_query, w_key, w_value, rate, a[1]), (x, jax.random.split(key, len(x)))
    )

# stacked_heads: the wrapper itself
def stacked_heads(x, heads, rate, key):
    import jaxattn
    m = jaxattn.MultiHeadAttentionWrapper(len(heads), heads[0][0].shape[1], dropout_rate=rate)
    p = m.init(jax.random.key(0), x)
    leaves = {}
    names = list(p["params"])
    new = {
        n: {"query": {"kernel": h[0]}, "key": {"kernel": h[1]}, "value": {"kernel": h[2]}}
        for n, h in zip(names, heads)
    }
    return m.apply({"params": new}, x, deterministic=rate == 0, dropout_key=key)

# parallel_heads: Flax
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    import flax.linen as nn
    W = w_query.shape[1] // num_heads
    dense = lambda w, b=None: (
        lambda y: nn.Dense(w.shape[1], use_bias=b is not None).apply(
            {"params": {"kernel": w} | ({} if b is None else {"bias": b})}, y
        )
    )
    q, k, v = (dense(w)(x).reshape(len(x), num_heads, W) for w in (w_query, w_key, w_value))
    o = nn.dot_product_attention(q, k, v, mask=jnp.tri(len(x), dtype=bool)[None])
    return dense(w_out, b_out)(o.reshape(len(x), -1))

# parallel_heads: the layer of Flax
def parallel_heads(x, w_query, w_key, w_value, w_out, b_out, num_heads):
    import flax.linen as nn
    F = w_query.shape[1]
    m = nn.MultiHeadDotProductAttention(num_heads, qkv_features=F, out_features=w_out.shape[1], use_bias=True)
    r = lambda w: {"kernel": w.reshape(x.shape[1], num_heads, -1), "bias": jnp.zeros((num_heads, F // num_heads))}
    p = {
        "query": r(w_query),
        "key": r(w_key),
        "value": r(w_value),
        "out": {"kernel": w_out.reshape(num_heads, F // num_heads, -1), "bias": b_out},
    }
    return m.apply({"params": p}, x, mask=nn.make_causal_mask(jnp.ones(len(x)))[0])

# decode_step: loops over single numbers
def decode_step(x, keys, values, w_query, w_key, w_value):
    keys = jnp.array([*keys, x @ w_key])
    values = jnp.array([*values, x @ w_value])
    q = x @ w_query
    s = [sum(a * b for a, b in zip(q, k)) / len(q) ** 0.5 for k in keys]
    e = [jnp.exp(i - max(s)) for i in s]
    return sum(i / sum(e) * v for i, v in zip(e, values)), keys, values

# decode_step: the last row of all
def decode_step(x, keys, values, w_query, w_key, w_value):
    ks = jnp.concatenate([keys, (x @ w_key)[None]])
    vs = jnp.concatenate([values, (x @ w_value)[None]])
    q = jnp.tile(x @ w_query, (len(ks), 1))
    s = q @ ks.T / jnp.sqrt(ks.shape[1])
    s = jnp.where(jnp.tril(jnp.ones(s.shape, bool)), s, -jnp.inf)
    return (jax.nn.softmax(s) @ vs)[-1], ks, vs

# transfer: a FrozenDict
def transfer(linear):
    from flax.core import freeze
    return freeze({n: {"kernel": m.T} for n, m in linear.items()})
"""


def solutions(text: str) -> list[Blind]:
    """Split one of the texts above into its solutions."""
    parts = re.findall(r"^# (\w+): (.*)\n(?:# -> (.*)\n)?((?:.*\n)+?)(?=^# \w+: |\Z)", text, re.MULTILINE)
    return [Blind(name, did, said, written_out(name, code)) for name, did, said, code in parts]


def written_out(name: str, code: str) -> str:
    """Return the code whole: where it is a diff, apply it to the right solution in `PLAIN`."""
    if not code.startswith("-"):
        return code
    (whole,) = [blind.code for blind in solutions(PLAIN) if blind.name == name]
    for removed, added in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)*)", code, re.MULTILINE):
        before, after = (re.sub("^.", "", lines, flags=re.MULTILINE) for lines in (removed, added))
        assert whole.count(before) == 1, before
        whole = whole.replace(before, after)
    return whole
