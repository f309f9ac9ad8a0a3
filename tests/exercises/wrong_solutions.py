"""What learners write: wrong solutions, with a part of the sentence that names the mistake, and right ones.

`x`, `weights` and so on are the arguments of the step's function; the body is what stands below its docstring.
"""

# (function, body, part of the sentence)
NAMED = [
    ("raw_scores", "return x.T @ x", "sums over the tokens in place of the width"),
    ("raw_scores", "return x @ x.T / x.shape[1] ** 0.5", "is scaled already"),
    ("softmax_rows", "return jax.nn.softmax(scores, axis=0)", "softmax over the queries"),
    ("softmax_rows", "e = jnp.exp(scores)\nreturn e / e.sum()", "divides by the sum of all entries"),
    ("softmax_rows", "e = jnp.exp(scores)\nreturn e / jnp.sum(e, axis=1)", "divides each row by another row's sum"),
    ("softmax_rows", "e = jnp.exp(scores)\nreturn e / e.sum(1)[:, None]", "exp overflows"),
    ("context", "return jnp.einsum('ji,jd->id', weights, value)", "sums over the queries"),
    ("self_attention", "return jax.nn.softmax((x @ w_query) @ (x @ w_key).T) @ (x @ w_value)", "is not scaled"),
    (
        "self_attention",
        "s = (x @ w_query) @ (x @ w_key).T / jnp.sqrt(x.shape[1])\nreturn jax.nn.softmax(s) @ (x @ w_value)",
        "scaled by the model's width",
    ),
    (
        "self_attention",
        "s = (x @ w_query) @ (x @ w_key).T / w_key.shape[1]\nreturn jax.nn.softmax(s) @ (x @ w_value)",
        "divides by d_out, not by its root",
    ),
    (
        "self_attention",
        "s = (x @ w_query) @ (x @ w_key).T / w_key.shape[1] ** 0.5\nreturn jax.nn.softmax(s, 0) @ (x @ w_value)",
        "softmax over the queries",
    ),
    (
        "self_attention",
        "s = (x @ w_key) @ (x @ w_query).T / w_key.shape[1] ** 0.5\nreturn jax.nn.softmax(s) @ (x @ w_value)",
        "queries and keys swapped",
    ),
    (
        "self_attention",
        "s = (x @ w_query) @ (x @ w_key).T / w_key.shape[1] ** 0.5\nreturn jax.nn.softmax(s) @ x",
        "averages the tokens themselves",
    ),
    ("causal_mask", "return jnp.triu(jnp.ones((T, T), bool), 1)", "is inverted"),
    ("causal_mask", "i = jnp.arange(T)\nreturn i[None] <= i[:, None] + 1", "off by one: it lets each token attend"),
    ("causal_mask", "i = jnp.arange(T)\nreturn i[None] < i[:, None]", "off by one: a token may attend to itself"),
    ("causal_mask", "return jnp.triu(jnp.ones((T, T), bool))", "upper triangle"),
    ("causal_mask", "return jnp.tril(jnp.ones((T, T)))", "must be bool"),
    ("masked_weights", "return jax.nn.softmax(jnp.where(mask, -1e9, scores))", "has the mask inverted"),
    ("masked_weights", "return jax.nn.softmax(scores * mask)", "exp(0) = 1"),
    ("masked_weights", "return jnp.where(mask, jax.nn.softmax(scores), 0)", "lacks the renormalisation"),
    ("masked_weights", "return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))", "gives NaN in a row"),
    ("masked_weights", "return jax.nn.softmax(jnp.where(mask, scores, -1e9))", "gives equal weights in a row"),
    (
        "masked_weights",
        "w = jax.nn.softmax(scores + jnp.where(mask, 0, -jnp.inf))\nreturn jnp.where(mask, w, 0)",
        "through the mask",
    ),
    (
        "renormalized_weights",
        "w = weights * mask\nreturn jnp.nan_to_num(w / w.sum(-1, keepdims=True))",
        "through the mask",
    ),
    ("renormalized_weights", "return weights * mask", "lacks the renormalisation"),
    ("renormalized_weights", "w = weights * ~mask\nreturn w / jnp.maximum(w.sum(1)[:, None], 1e-9)", "mask inverted"),
    ("renormalized_weights", "w = weights * mask\nreturn w / w.sum(-1, keepdims=True)", "gives NaN in a row"),
    ("renormalized_weights", "return jax.nn.softmax(weights * mask)", "applies softmax a second time"),
    ("dropout", "k = jax.random.uniform(key, weights.shape) >= rate\nreturn weights * k / rate", "by 1 / rate"),
    ("dropout", "return weights * (jax.random.uniform(key, weights.shape) >= rate)", "does not rescale"),
    (
        "dropout",
        "k = jax.random.bernoulli(key, rate, weights.shape)\nreturn weights * k / (1 - rate)",
        "keeps each weight with probability rate",
    ),
    (
        "dropout",
        "k = jax.random.bernoulli(jax.random.key(0), 1 - rate, weights.shape)\nreturn weights * k / (1 - rate)",
        "the same entries with every key",
    ),
    (
        "batched_attention",
        "return jnp.stack([causal_attention(e, w_query, w_key, w_value, rate, key) for e in x])",
        "one key for all examples",
    ),
    (
        "batched_attention",
        "flat = x.reshape(-1, x.shape[-1])\n"
        "return causal_attention(flat, w_query, w_key, w_value, rate, key).reshape(*x.shape[:2], -1)",
        "one long sequence",
    ),
    *(
        (
            name,
            "def one(x, w_query, w_key, w_value, key):\n"
            "    T, scores = len(x), (x @ w_query) @ (x @ w_key).T / w_key.shape[1] ** 0.5\n"
            "    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf))\n"
            f"    kept = jax.random.bernoulli(key, 1 - rate, {shape})\n"
            "    return weights * kept / (1 - rate) @ (x @ w_value)\n" + call,
            words,
        )
        for name, call in (
            (
                "batched_attention",
                "keys = jax.random.split(key, len(x))\n"
                "return jnp.stack([one(e, w_query, w_key, w_value, k) for e, k in zip(x, keys)])",
            ),
            (
                "stacked_heads",
                "keys = jax.random.split(key, len(heads))\n"
                "return jnp.hstack([one(x, *h, k) for h, k in zip(heads, keys)])",
            ),
        )
        for shape, words in (
            ("(T, 1)", "drops all weights of a query or none"),
            ("(1, T)", "drops the weights of a key for all queries or for none"),
        )
    ),
    (
        "stacked_heads",
        "return jnp.concatenate([causal_attention(x, *h, rate, key) for h in heads], -1)",
        "one key for all heads",
    ),
    (
        "stacked_heads",
        "keys = jax.random.split(key, len(heads))\n"
        "return jnp.hstack([causal_attention(x, *h, rate, k) for h, k in zip(heads, keys)][::-1])",
        "in the wrong order",
    ),
    ("parallel_heads", "@split=a.reshape(H, T, D)", "splits with the view before the transpose left out"),
    ("parallel_heads", "@join=c.reshape(T, H * D)", "joins without the transpose"),
    ("parallel_heads", "@scale=(H * D) ** 0.5", "scaled by the width of all heads"),
    ("parallel_heads", "@mask=jnp.ones((T, T), bool)", "leaks the future"),
    ("parallel_heads", "@out=c", "lacks the output projection"),
    ("parallel_heads", "@out=c @ w_out", "lacks the output projection's bias"),
    ("parallel_heads", "@join=c[::-1].swapaxes(0, 1).reshape(T, H * D)", "in the wrong order"),
    ("parallel_heads", "@axis=1", "softmax over the queries"),
    (
        "decode_step",
        "q = x @ w_query\nc = jax.nn.softmax(keys @ q / 2) @ values if len(keys) else jnp.zeros(4)\n"
        "return c, jnp.vstack([keys, x @ w_key]), jnp.vstack([values, x @ w_value])",
        "leaves the newest token out",
    ),
    ("transfer", "return {n: {'kernel': m} for n, m in linear.items()}", "is not transposed"),
    ("wrapper_of_width", "return jaxattn.MultiHeadAttentionWrapper(num_heads, width)", "as wide as the whole output"),
]

# Mistakes that have no name: the property that fails answers, or the entry that differs.
UNNAMED = [
    ("raw_scores", "return jnp.abs(x @ x.T) + 1", "is expected"),
    ("softmax_rows", "return jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True) / 2", "do not sum to 1"),
    ("softmax_rows", "return scores / jnp.abs(scores).sum(-1, keepdims=True)", "do not sum to 1"),
    ("context", "return weights @ value[::-1]", "is expected"),
    ("self_attention", "return (x @ w_value)[:2]", "shape (2, 2), but (6, 2) is expected"),
    ("masked_weights", "return jnp.where(mask, 1 / scores.shape[-1], 0)", "do not sum to 1"),
    ("dropout", "return weights * 1.0", "drops nothing"),
    (
        "dropout",
        "k = jax.random.bernoulli(key, 1 - rate, (weights.shape[0], 1))\nreturn weights * k / (1 - rate)",
        "drops whole rows or columns",
    ),
    (
        "parallel_heads",
        "h = x @ w_value\nreturn jnp.cumsum(h[::-1], 0)[::-1] @ w_out + b_out",
        "output 0 changes with input 1, which comes later",
    ),
    ("stacked_heads", "return jnp.tile(x.mean(0), (len(x), 2))", "output 0 changes with input 1"),
    ("decode_step", "return x @ w_value, keys, values, None", "is expected"),
    ("context", "weights @ value", "returns nothing: end it with return"),
    ("context", "return weights @ values", "raises NameError in line"),
    ("context", "return weights @", "is no Python"),
    ("context", "return 'weights'", "holds no numbers"),
]

# One right body for each style, where the style fits the step.
RIGHT = [
    # loops
    ("raw_scores", "return jnp.array([[sum(float(a) * float(b) for a, b in zip(r, s)) for s in x] for r in x])"),
    ("context", "return jnp.stack([sum(w * v for w, v in zip(row, value)) for row in weights])"),
    ("causal_mask", "return jnp.array([[j <= i for j in range(T)] for i in range(T)])"),
    (
        "batched_attention",
        "keys = jax.random.split(key, len(x))\n"
        "return jnp.stack([causal_attention(e, w_query, w_key, w_value, rate, k) for e, k in zip(x, keys)])",
    ),
    (
        "parallel_heads",
        "outs, D = [], w_query.shape[1] // num_heads\n"
        "for h in range(num_heads):\n"
        "    c = slice(h * D, (h + 1) * D)\n"
        "    s = (x @ w_query[:, c]) @ (x @ w_key[:, c]).T / D**0.5\n"
        "    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(s.shape)) > 0, s, -jnp.inf))\n"
        "    outs.append(w @ (x @ w_value[:, c]))\n"
        "return jnp.hstack(outs) @ w_out + b_out",
    ),
    # einsum
    ("raw_scores", "return jnp.einsum('id,jd->ij', x, x)"),
    (
        "parallel_heads",
        "T, H = len(x), num_heads\n"
        "q, k, v = (jnp.einsum('td,dhe->hte', x, w.reshape(x.shape[1], H, -1)) for w in (w_query, w_key, w_value))\n"
        "s = jnp.einsum('hte,hse->hts', q, k) / q.shape[-1] ** 0.5\n"
        "w = jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), s, -1e9))\n"
        "return jnp.einsum('hts,hse,hed->td', w, v, w_out.reshape(H, -1, w_out.shape[1])) + b_out",
    ),
    # matmul
    (
        "self_attention",
        "s = jnp.matmul(x @ w_query, (x @ w_key).T) * w_key.shape[1] ** -0.5\n"
        "return jax.nn.softmax(s, -1) @ (x @ w_value)",
    ),
    (
        "decode_step",
        "keys, values = jnp.vstack([keys, x @ w_key]), jnp.vstack([values, x @ w_value])\n"
        "return jax.nn.softmax((x @ w_query) @ keys.T / keys.shape[1] ** 0.5) @ values, keys, values",
    ),
    # vmap
    ("raw_scores", "return jax.vmap(lambda r: jax.vmap(lambda s: r @ s)(x))(x)"),
    ("softmax_rows", "return jax.vmap(jax.nn.softmax)(scores)"),
    (
        "stacked_heads",
        "stacked = [jnp.stack(w) for w in zip(*heads)]\n"
        "keys = jax.random.split(key, len(heads))\n"
        "out = jax.vmap(lambda q, k, v, r: causal_attention(x, q, k, v, rate, r))(*stacked, keys)\n"
        "return out.swapaxes(0, 1).reshape(len(x), -1)",
    ),
    # flax
    (
        "self_attention",
        "import jaxattn\n"
        "params = {n: {'kernel': w} for n, w in (('query', w_query), ('key', w_key), ('value', w_value))}\n"
        "return jaxattn.SelfAttention(w_key.shape[1]).apply({'params': params}, x)",
    ),
    ("softmax_rows", "import flax.linen as nn\nreturn nn.softmax(scores)"),
    (
        "dropout",
        "import flax.linen as nn\n"
        "return nn.Dropout(rate).apply({}, weights, deterministic=False, rngs={'dropout': key})",
    ),
    ("masked_weights", "w = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))\nreturn jnp.where(jnp.isnan(w), 0, w)"),
    # NumPy, which JAX cannot differentiate
    (
        "masked_weights",
        "import numpy as np\n"
        "e = np.where(mask, np.exp(np.asarray(scores)), 0)\n"
        "return e / np.maximum(e.sum(1, keepdims=True), 1e-30)",
    ),
]
