"""After the book: query heads that share keys and values, and the memory of the cache."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.attention import dot_product_attention
from jaxattn.cache import Cache
from jaxattn.functional import attention_scores
from jaxattn.guide.section import Cell, Equation, Numbers, Section, Switch, Table, by_switch, constant, single
from jaxattn.guide.story import Story
from jaxattn.masks import Causal

PARAGRAPHS = [
    "A model writes word by word. The keys and values of earlier words do not change, because of the causal mask, so "
    "they are kept in a cache; a new word needs only its own query, key and value. The cache grows with each word, in "
    "each layer, and for long texts it is larger than the model.",
    "Grouped heads make it smaller: each KV head serves several query heads. The queries still differ, and so do the "
    "weights of the heads. With one KV head for all it is called multi-query attention (Shazeer 2019), with a few "
    "grouped-query attention (Ainslie et al. 2023).",
]
OWN, SHARED = {"sharing": ("own",)}, {"sharing": ("shared",)}
SCALE = Equation(
    "Scaled", "Divide by the square root of the width of one head.", "scale", ["scores", "width"], "scaled"
)
EQUATIONS = [
    Equation("Queries", "Each head has queries of its own.", "einsum", ["inputs", "W query"], "queries", "rk,hkc->hrc"),
    Equation("Keys", "Each head has keys of its own.", "einsum", ["inputs", "W key"], "keys", "rk,hkc->hrc", OWN),
    Equation("Keys", "Keys for all heads.", "einsum", ["inputs", "shared W key"], "shared keys", "rk,kc->rc", SHARED),
    Equation(
        "Values", "Each head has values of its own.", "einsum", ["inputs", "W value"], "values", "rk,hkc->hrc", OWN
    ),
    Equation(
        "Values", "Values for all heads.", "einsum", ["inputs", "shared W value"], "shared values", "rk,kc->rc", SHARED
    ),
    Equation(
        "Scores", "Each head compares its queries with its keys.", "einsum", ["queries", "keys"], "scores",
        "hrk,hck->hrc", OWN,
    ),
    Equation(
        "Scores", "Each head compares its queries with the same keys.", "einsum", ["queries", "shared keys"], "scores",
        "hrk,ck->hrc", SHARED,
    ),
    SCALE,
    Equation("Masked", "Set the scores of later keys to −∞.", "mask", ["scaled", "mask"], "masked"),
    Equation("Weights", "Softmax of each row.", "softmax", ["masked"], "weights"),
    Equation("Context", "Average the head's values.", "einsum", ["weights", "values"], "context", "hrk,hkc->hrc", OWN),
    Equation(
        "Context", "Average the same values, by the head's weights.", "einsum", ["weights", "shared values"], "context",
        "hrk,kc->hrc", SHARED,
    ),
]  # fmt: skip
CODE = """\
from jaxattn import AttentionLayer, dot_product_attention, masks
# query (T, H, D), key and value (T, K, D): K divides H
context = dot_product_attention(query, key, value, masks.Causal())
layer = AttentionLayer(num_heads=32, features=4096, num_kv_heads=8, cache_length=8192)"""
# Layers, query heads, KV heads and head width of known models.
MODELS = {"GPT-2 small": (12, 12, 12, 64), "Llama 2 7B": (32, 32, 32, 128), "Llama 3 8B": (32, 32, 8, 128)}

CALCULATOR = [
    ("layers", "Layers", 32),
    ("heads", "KV heads", 8),
    ("width", "Width of a head", 128),
    ("bytes", "Bytes of a number", 2),
    ("tokens", "Tokens", 8192),
]


def grouped_section(story: Story) -> Section:
    """Compute the section."""
    H = len(story.stacked["params"])
    return Section(
        id="grouped",
        title="After the book: grouped heads and the cache",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers=_numbers(story, H),
        equations=EQUATIONS,
        code=CODE,
        arcs="weights",
        switches=[
            Switch("sharing", "Keys and values", [("own", "for each head"), ("shared", "shared by all")], "shared"),
            Switch("head", "Head", [(str(head), str(head)) for head in range(H)], "0"),
        ],
        tables=[_memory()],
        opened=3,
        calculator=CALCULATOR,
    )


def bytes_per_token(layers: int, kv_heads: int, width: int, dtype: str = "bfloat16") -> int:
    """Return the bytes that a cache grows by with each token: keys and values of all layers.

    Example:
        >>> from jaxattn.guide.sections.grouped import bytes_per_token
        >>> bytes_per_token(32, 8, 128)
        131072
    """
    token = jnp.zeros((1, kv_heads, width), dtype)
    cache = jax.eval_shape(lambda: Cache.empty(token, token, 1))
    return layers * sum(math.prod(array.shape) * array.dtype.itemsize for array in (cache.key, cache.value))


def _numbers(story: Story, H: int) -> dict[str, Numbers]:
    x, note = story.inputs, story.parameter_note
    heads = [story.stacked["params"][f"heads_{head}"] for head in range(H)]
    kernels = {name: np.stack([head[name]["kernel"] for head in heads]) for name in ("query", "key", "value")}
    D = kernels["query"].shape[-1]
    query, key, value = jax.device_get(_project(x, kernels))
    numbers = {
        "inputs": constant(x, "token", "feature", symbol="X", note=story.input_note),
        "queries": constant(query, "head", "token", "feature", symbol="Q"),
        "keys": constant(key, "head", "token", "feature", symbol="K"),
        "values": constant(value, "head", "token", "feature", symbol="V"),
        "shared keys": constant(key[0], "token", "feature", symbol="K"),
        "shared values": constant(value[0], "token", "feature", symbol="V"),
        "width": single(D, symbol="width", note="the number of elements of a key"),
    }
    for name, kernel in kernels.items():
        symbol = f"W_{name[0]}"
        numbers[f"W {name}"] = constant(kernel, "head", "input", "feature", symbol=symbol, note=note)
        numbers[f"shared W {name}"] = constant(kernel[0], "input", "feature", symbol=symbol, note=note)
    del numbers["shared W query"]
    return numbers | _by_sharing(query, {"own": (key, value), "shared": (key[:1], value[:1])})


@jax.jit
def _project(x: Array, kernels: dict[str, Array]) -> list[Array]:
    return [jnp.einsum("rk,hkc->hrc", x, kernels[name]) for name in ("query", "key", "value")]


@jax.jit
def _attend(query: Array, key: Array, value: Array) -> dict[str, Array]:
    """Compute all steps, with heads `(H, T, D)` in front."""
    T, D = query.shape[1:]
    mask = Causal().array(T, T)
    scores = attention_scores(query, jnp.broadcast_to(key, query.shape))
    scaled = scores * jnp.float32(D**-0.5)
    # (H, T, D) -> (T, H, D)
    q, k, v = (jnp.swapaxes(array, 0, 1) for array in (query, key, value))
    output, weights = dot_product_attention(q, k, v, Causal(), return_weights=True)
    masked, context = jnp.where(mask, scaled, -jnp.inf), jnp.swapaxes(output, 0, 1)
    return {"scores": scores, "scaled": scaled, "masked": masked, "weights": weights, "context": context}


def _by_sharing(query: Array, shared: dict[str, tuple[Array, Array]]) -> dict[str, Numbers]:
    """Compute what follows from queries `(H, T, D)` with H or 1 heads of keys and values."""
    T = query.shape[1]
    steps = {way: jax.device_get(_attend(query, key, value)) for way, (key, value) in shared.items()}
    ways = {name: {way: each[name] for way, each in steps.items()} for name in steps["own"]}
    note = "the causal mask: 1 where the key is the query or comes before it, 0 where it comes after"
    pairs = ("head", "query", "key")
    return {
        "mask": constant(np.tri(T, dtype=bool), "query", "key", symbol="M", kind="plain", note=note),
        "scores": by_switch("sharing", ways["scores"], *pairs, symbol="S", kind="scores"),
        "scaled": by_switch("sharing", ways["scaled"], *pairs, symbol="S′", kind="scores"),
        "masked": by_switch("sharing", ways["masked"], *pairs, symbol="S″", kind="scores"),
        "weights": by_switch("sharing", ways["weights"], *pairs, symbol="A", kind="weights"),
        "context": by_switch("sharing", ways["context"], "head", "token", "feature", symbol="Z"),
    }


def _memory() -> Table:
    """List the memory of the cache of known models, in bfloat16."""
    rows = []
    for name, (layers, heads, kv_heads, width) in MODELS.items():
        each = bytes_per_token(layers, kv_heads, width)
        given = [Cell(str(number), note=f"the size of {name}") for number in (layers, heads, kv_heads, width)]
        note = "keys and values · layers · KV heads · width of a head · bytes of a number"
        cells = [*given, Cell(f"{each:,}", f"2 · {layers} · {kv_heads} · {width} · 2", note)]
        gib = Cell(f"{each * 8192 / 2**30:.2f}", f"{each} · 8192 / {2**30}", "bytes a token · tokens / bytes of a GiB")
        rows.append((name, [*cells, gib]))
    columns = ["model", "layers", "query heads", "KV heads", "head width", "bytes a token", "GiB for 8192 tokens"]
    return Table("The cache in bfloat16", columns, rows)
