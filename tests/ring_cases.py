"""What ring attention is tested with, and the float64 numbers that it must give."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from cases import draw, draw_heads, kept_factors, relative_error

from jaxattn import biases, dot_product_attention, masks, ring_attention
from jaxattn.ring import zigzag_order

ITEMSIZE = {"pred": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
EXCHANGES = "collective-permute|all-gather|all-to-all|reduce-scatter|all-reduce"
B, H, D, D_v = 2, 4, 4, 3
NAMES = (
    "none",
    "causal",
    "window",
    "two-sided",
    "documents",
    "padded",
    "chunked",
    "prefix",
    "array",
    "per head",
    "offsets",
    "dropout",
    "capped",
    "bias",
    "row bias",
    "key bias",
    "alibi",
    "relative",
    "everything",
)


def draw_case(name, T, S):
    """Return a mask and options."""
    rng = np.random.default_rng(len(name))
    ids, key_ids = (jnp.asarray(np.sort(rng.integers(0, 3, (B, n)), -1)) for n in (T, S))
    causal, dropout = masks.Causal(S - T), {"dropout_rate": 0.3, "dropout_key": jax.random.key(1)}
    bias, row_bias, key_bias, sinks, table = draw(1, (H, T, S), (T, 1), (B, 1, 1, S), (H,), (8, H))
    alibi = biases.Alibi.for_heads(H, S - T)
    lengths = jnp.asarray([S // 3, S - 1])
    return {
        "none": (None, {}),
        "causal": (causal, {}),
        "window": (masks.SlidingWindow(max(2, S // 8), S - T), {}),
        "two-sided": (masks.SlidingWindow(max(2, S // 8), S - T, right=2), {}),
        "documents": (causal & masks.Segments(ids, key_ids), {}),
        "padded": (causal & masks.Lengths(lengths), {}),
        "chunked": (causal & masks.Chunked(5, S - T), {}),
        "prefix": (causal | masks.Prefix(lengths), {}),
        "array": (jnp.asarray(rng.random((T, S)) < 0.3), {}),
        "per head": (causal & masks.ArrayMask(jnp.asarray(rng.random((B, H, 1, S)) < 0.7)), {}),
        "offsets": (masks.Causal(jnp.asarray([-3, S - T + 2])), {}),
        "dropout": (causal, dropout),
        "capped": (causal, {"soft_cap": 1.5, "sinks": sinks, "scale": jnp.asarray(0.7)}),
        "bias": (causal, {"bias": bias}),
        "row bias": (None, {"bias": row_bias, "scale": -0.5}),
        "key bias": (None, {"bias": key_bias}),
        "alibi": (causal, {"bias": alibi}),
        "relative": (None, {"bias": biases.Relative(table, max_distance=16, offset=S - T)}),
        "everything": (
            causal & masks.Segments(ids, key_ids) & masks.Lengths(lengths),
            {"bias": alibi, "soft_cap": 1.5, "sinks": sinks, **dropout},
        ),
    }[name]


def expected(arrays, mask, options):
    """Return context, lse, and the gradients of query, key, value, and of the options that have one, in float64."""
    query, key, value, gradient, of_lse = arrays
    T, S = query.shape[-3], key.shape[-3]
    scale = options.get("scale", D**-0.5)
    given = {"scale": float(scale), "soft_cap": options.get("soft_cap"), "sinks": options.get("sinks")}
    as_array = lambda bias: bias.array(T, S) if isinstance(bias, biases.Bias) else bias  # noqa: E731
    bias = options.get("bias")
    given["bias"] = None if bias is None else as_array(bias)
    if "dropout_rate" in options:
        given["factors"] = kept_factors((B,), H, T, S, options["dropout_rate"], options["dropout_key"])
    allowed = None if mask is None else masks.as_mask(mask).with_heads().array(T, S)
    plain = {name: option for name, option in given.items() if name != "factors"}
    lse = oracle.attend_with_lse(query, key, value, allowed, **plain)[2]
    context = oracle.attend(query, key, value, allowed, **given)[0]
    of_lse = np.where(np.isneginf(lse), 0, of_lse)
    came = oracle.gradients(query, key, value, gradient, allowed, of_lse=of_lse, **given)
    *of_heads, of_logits, of_sinks = (*came, None)[:5]
    of_options = {}
    if bias is not None:
        array, vjp = jax.vjp(as_array, bias)
        axes = tuple(range(of_logits.ndim - array.ndim))
        of_entries = of_logits.sum(axes)
        broadcast = tuple(axis for axis, n in enumerate(array.shape) if n == 1)
        of_options["bias"] = vjp(jnp.asarray(of_entries.sum(broadcast, keepdims=True), jnp.float32))[0]
    if "sinks" in options:
        of_options["sinks"] = of_sinks
    if isinstance(scale, jax.Array):  # the gradient of the query is scale · f(scale · query)
        of_options["scale"] = (np.asarray(of_heads[0]) * np.asarray(query, np.float64)).sum() / float(scale)
    return context, lse, *of_heads, of_options


def check_case(name, *, T=16, S=16, K=2, **ring):
    """Compare results and gradients of `ring_attention` with float64."""
    mask, options = draw_case(name, T, S)
    query, key, value = draw_heads(0, batch=(B,), T=T, S=S, H=H, K=K, D=D, D_v=D_v)
    gradient, of_lse = draw(7, (B, T, H, D_v), (B, H, T))
    right = expected((query, key, value, gradient, of_lse), mask, options)
    differentiable = (jax.Array, biases.Bias)
    smooth = {
        name: option for name, option in options.items() if isinstance(option, differentiable) and name != "dropout_key"
    }
    fixed = {name: option for name, option in options.items() if name not in smooth}

    def attend(query, key, value, smooth, mask):
        return ring_attention(query, key, value, mask, **smooth, **fixed, **ring, return_lse=True)

    @jax.jit
    def run(query, key, value, smooth, mask, gradient, of_lse):
        results, vjp = jax.vjp(functools.partial(attend, mask=mask), query, key, value, smooth)
        return *results, *vjp((gradient, of_lse))

    came = run(query, key, value, smooth, mask, gradient, of_lse)
    for one, other in zip(jax.tree.leaves(came), jax.tree.leaves(right), strict=True):
        one, other = (np.nan_to_num(np.asarray(array, np.float64), neginf=0) for array in (one, other))
        error = relative_error(one, other)
        assert error < 2e-6, (name, ring, one.shape, error)


def check_zigzag(kind, T=16, S=32, **ring):
    """Compare tokens in zig-zag order, given and returned, with natural order on one device, with gradients."""
    devices = ring["mesh"].shape[ring["axis"]]
    queries, keys = zigzag_order(T, devices), zigzag_order(S, devices)
    arrays = draw_heads(0, batch=(B,), T=T, S=S, H=H, K=2, D=D, D_v=D_v)
    bias, gradient = draw(1, (1, H, T, S), (B, T, H, D_v))
    bias = bias if kind == "array" else biases.Alibi.for_heads(H, S - T)
    allowed = jnp.asarray(np.random.default_rng(0).random((T, S)) < 0.8)
    _, options = draw_case("everything", T, S)
    del options["bias"]

    def mask(queries, keys):
        documents = masks.Segments(jnp.asarray(queries // 5), jnp.asarray(keys // 5))
        lengths = masks.Lengths(jnp.asarray([S // 2, S - 1]))
        return masks.Causal(S - T) & lengths & (documents | masks.ArrayMask(allowed[queries][:, keys]))

    def alone(query, key, value, bias):
        natural = mask(np.arange(T), np.arange(S))
        return dot_product_attention(query, key, value, natural, bias=bias, implementation="dense", **options)

    def shared(query, key, value, bias):
        bias = bias[..., queries, :][..., keys] if kind == "array" else bias
        heads = query[:, queries], key[:, keys], value[:, keys]
        context = ring_attention(*heads, mask(queries, keys), bias=bias, order="zigzag", **options, **ring)
        return context[:, np.argsort(queries)]

    def run(attend):
        context, vjp = jax.vjp(attend, *arrays, bias)
        return context, vjp(gradient)

    came, right = (jax.tree.leaves(jax.jit(functools.partial(run, attend))()) for attend in (shared, alone))
    for one, other in zip(came, right, strict=True):
        assert relative_error(one, np.asarray(other)) < 5e-6, (kind, ring, one.shape)


def bytes_sent(compiled):
    """Return how many bytes each device sends, by kind of exchange, from the text of a compiled program."""
    computations, name = {}, None
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and (head := re.match(r"\s*(?:ENTRY )?%?([\w.-]+) \(", line)):
            name, computations[head[1]] = head[1], []
        elif name is not None:
            computations[name].append(line)
    entry = re.search(r"^ENTRY %?([\w.-]+)", compiled.as_text(), re.MULTILINE)[1]
    total = collections.Counter()
    _add_bytes(computations, entry, 1, total)
    return dict(total)


def _add_bytes(computations, name, times, total):
    """Count a computation, which runs so many times, and those that it calls."""
    for line in computations[name]:
        loop = re.search(r"while\(.*body=%?([\w.-]+)", line)
        if loop:
            count = re.search(r"known_trip_count\D*(\d+)", line)
            inside = {}
            _add_bytes(computations, loop[1], 1, inside := collections.Counter())
            assert not inside or count, "a loop that sends runs an unknown number of times"
            for kind, number in inside.items():
                total[kind] += times * int(count[1]) * number
            continue
        for callee in re.findall(r"(?:to_apply|calls|branch_computations)=\{?%?([\w.-]+)", line):
            _add_bytes(computations, callee, times, total)
        exchange = re.search(
            r" (collective-permute|all-gather|all-to-all|reduce-scatter|all-reduce)(?:-start)?\(", line
        )
        if exchange:
            total[exchange[1]] += times * _bytes_of(line, exchange[1])


def _bytes_of(line, kind):
    """Return how many bytes the busiest device sends to others in one exchange."""
    result = line.split(" = ")[1].split(f" {kind}")[0]
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    size = sum(ITEMSIZE[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in shapes)
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)[1].replace("{", "").replace("}", "").split(",")
        return size if any(one != other for one, other in zip(pairs[::2], pairs[1::2], strict=True)) else 0
    groups = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    n = len(groups[1].split(",")) if groups else int(re.search(r"replica_groups=\[\d+,(\d+)\]", line)[1])
    return size * (n - 1) if kind == "reduce-scatter" else size * (n - 1) // n * (2 if kind == "all-reduce" else 1)
