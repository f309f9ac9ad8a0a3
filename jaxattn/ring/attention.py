"""Attention with the tokens of a sequence sharded over a mesh axis: check the arguments, shard them, run a strategy."""

import dataclasses
import functools
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxattn.biases import Bias
from jaxattn.kernels import transforms
from jaxattn.kernels.call import AttentionCall, checked_call
from jaxattn.masks import combine
from jaxattn.ring import exchanging, gathering, passing
from jaxattn.ring.checks import check_mesh, segments
from jaxattn.ring.order import Layout, Order, choose_layout, plan_hops, restore
from jaxattn.ring.parts import Shards, Tokens, arranged

Strategy = Literal["ring", "all_gather", "all_to_all"]


class Ring(NamedTuple):
    """The devices of `ring_attention`; the fields are its arguments of the same names."""

    mesh: Mesh
    axis: str
    batch_axis: str | None = None
    head_axis: str | None = None
    strategy: Strategy = "ring"
    order: Order = "natural"


def ring_attention(
    query: Float[Array, "*batch T H D"],
    key: Float[Array, "*batch S K D"],
    value: Float[Array, "*batch S K D_v"],
    mask: Any = None,
    *,
    mesh: Mesh,
    axis: str,
    batch_axis: str | None = None,
    head_axis: str | None = None,
    strategy: Strategy = "ring",
    order: Order = "natural",
    segment_ids: Int[Array, "*batch T"] | None = None,
    key_segment_ids: Int[Array, "*batch S"] | None = None,
    scale: float | Array | None = None,
    bias: Float[Array, "..."] | Bias | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, "H"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    return_lse: bool = False,
    precision: Any = None,
) -> Float[Array, "*batch T H D_v"] | tuple[Float[Array, "*batch T H D_v"], Float[Array, "*batch H T"]]:
    """Compute exact attention with the tokens of one sequence sharded over a mesh axis.

    It takes the masks, biases and options of `dot_product_attention`, and gives the same numbers: dropout drops the
    same entries for the same key.

    Under a causal mask, "ring" and "all_gather" give each device an early and a late chunk of the tokens, so that all
    have the same work; then T and S should be multiples of 2n for n devices. With tokens in natural order, each call
    sends queries, keys, values and the context there and back, about as much as two more steps of the ring. To reorder
    the tokens of a batch once for all layers, use `jaxattn.ring.zigzag_order` and order="zigzag".

    Args:
        query: `(..., T, H, D)`, T a multiple of the number of devices on the axis.
        key: `(..., S, K, D)`, S a multiple of the number of devices, K divides H.
        value: `(..., S, K, D_v)`.
        mask: one of `jaxattn.masks` or a boolean array, as in `dot_product_attention`.
        mesh: the devices.
        axis: the mesh axis over which the tokens are sharded.
        batch_axis: the mesh axis over which the first axis of the arrays is sharded as well.
        head_axis: the mesh axis over which the heads are sharded as well.
        strategy: "ring" sends keys and values around in n - 1 steps, and only as far as a window reaches; memory on
            each device falls with n, for any number of devices. "all_gather" sends the same at once, and holds all keys
            and values. "all_to_all" swaps tokens for heads, which sends least; n must divide H, and K or K divide n.
        order: "natural", or "zigzag" if the tokens of all arrays are in the order of `zigzag_order`: in query, key,
            value and the results, and in the token axes of ids, boolean arrays and biases. Positions stay those of the
            natural order in everything else, such as `Causal()`, lengths and `biases.Alibi`.
        segment_ids: integers `(..., T)`: tokens attend to their own segment alone, as under `masks.Segments`.
        key_segment_ids: the segments of the keys, where they differ from those of the queries.
        scale: factor on the dot products; None is 1 / sqrt(D).
        bias: added to the scores, an array `(..., H, T, S)` or one of `jaxattn.biases`; a device holds the rows of an
            array that belong to its queries.
        soft_cap: keeps the scaled scores between -soft_cap and soft_cap.
        sinks: `(H,)`, the logit of one more key, with a value of 0, for each query head.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        dropout_key: PRNG key for dropout.
        return_lse: return the natural logsumexp `(..., H, T)` too.
        precision: of all matrix products, as in `jax.lax.dot_general`.

    Returns:
        The context `(..., T, H, D_v)`, sharded in the same way, or `(context, lse)`. They have first derivatives, in
        reverse mode.

    Raises:
        TypeError: an input is not floating point, or types differ.
        ValueError: shapes do not fit, or sizes are not multiples of the mesh's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import masks, ring_attention
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("tokens",))
        >>> heads = jnp.ones((1, 8 * len(jax.devices()), 2, 4))
        >>> ring_attention(heads, heads, heads, masks.Causal(), mesh=mesh, axis="tokens").shape == heads.shape
        True

    References:
        Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context"; Brandon et al. 2023,
        "Striped Attention" (balanced work); Jacobs et al. 2023, "DeepSpeed Ulysses" ("all_to_all").
    """
    options: dict[str, Any] = {"bias": bias, "soft_cap": soft_cap, "sinks": sinks, "dropout_rate": dropout_rate}
    options |= {"dropout_key": dropout_key, "return_lse": return_lse, "scale": scale, "precision": precision}
    plain = checked_call(query, key, value)
    (*batch, T, _, _), S = plain.query.shape, plain.key.shape[-3]
    mask = combine(mask, segments(segment_ids, key_segment_ids, (*batch, T), (*batch, S)))
    call = checked_call(query, key, value, mask, **options)
    axes: dict[str, Any] = {"axis": axis, "batch_axis": batch_axis, "head_axis": head_axis}
    check_mesh(call, mesh, strategy, order, axes)
    if 0 in (*call.query.shape, *call.value.shape):
        results = transforms.attend(call)
    else:
        results = _sharded(call, mask, Ring(mesh, strategy=strategy, order=order, **axes))
    return (results[0], results[1]) if return_lse else results[0]


def _sharded(call: AttentionCall, mask: Any, ring: Ring) -> tuple[Array, ...]:
    """Shard a call over the mesh, and compute its results."""
    specs = _specs(call, ring)
    leaves, structure = jax.tree.flatten(call)
    if AxisType.Explicit in ring.mesh.axis_types:
        leaves = [
            jax.reshard(leaf, NamedSharding(ring.mesh, spec)) for leaf, spec in zip(leaves, specs.arrays, strict=True)
        ]
    return _run(ring, _shards(call, mask, ring), structure, specs, *leaves)


def _shards(call: AttentionCall, mask: Any, ring: Ring) -> Shards:
    """Decide how a call is cut."""
    T, S, _, _ = call.sizes
    n = ring.mesh.shape[ring.axis]
    layout = Layout(n, 2) if ring.order == "zigzag" else choose_layout(mask, T, S, n)
    key_layout = layout if ring.strategy == "ring" else Layout(n, 1)
    return Shards(
        axis=ring.axis,
        layout=layout,
        key_layout=key_layout,
        hops=plan_hops(layout, call.band, T, S),
        T=T,
        S=S,
        is_natural=ring.order == "natural",
        mask=tuple(Tokens.of(leaf) for leaf in jax.tree.leaves(call.mask)),
        bias=Tokens(False, False) if call.bias is None else Tokens.of(call.bias),
        gathers=ring.strategy == "all_gather",
    )


class _Specs(NamedTuple):
    """How the arrays of a call, and its results, are sharded."""

    arrays: tuple[PartitionSpec, ...]
    results: tuple[PartitionSpec, ...]


def _specs(call: AttentionCall, ring: Ring) -> _Specs:
    batch = () if call.query.ndim == 3 else (ring.batch_axis, *(None,) * (call.query.ndim - 4))
    shards_tokens = ring.strategy != "all_to_all"
    heads = ring.head_axis if shards_tokens else tuple(name for name in (ring.head_axis, ring.axis) if name)

    def entries(array: Array, queries: bool = shards_tokens, keys: bool = shards_tokens) -> PartitionSpec:
        """Shard (B, H, T, S), an axis of 1 on no device; its queries, or keys if it has no queries."""
        tokens = Tokens.of(array)
        names = (*batch, heads, ring.axis if queries else None, ring.axis if keys and tokens.travel else None)
        return PartitionSpec(*(name if n > 1 else None for name, n in zip(names, array.shape, strict=True)))

    by_heads = functools.partial(entries, queries=False, keys=False)
    of_heads = PartitionSpec(*batch, ring.axis, ring.head_axis, None)
    specs = dataclasses.replace(
        call,
        query=of_heads,
        key=of_heads,
        value=of_heads,
        mask=jax.tree.map(entries, call.mask),
        bias=jax.tree.map(functools.partial(entries, keys=False), call.bias),
        row_bits=jax.tree.map(entries, call.row_bits),
        column_bits=jax.tree.map(entries, call.column_bits),
        diagonals=jax.tree.map(by_heads, call.diagonals),
        sinks=jax.tree.map(by_heads, call.sinks),
    )
    results = of_heads, PartitionSpec(*batch, ring.head_axis, ring.axis)
    return _Specs(tuple(jax.tree.leaves(specs)), results if call.return_lse else results[:1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(ring: Ring, shards: Shards, structure: Any, specs: _Specs, *arrays: Array) -> tuple[Array, ...]:
    """Run the strategy on each device."""

    def run(*arrays: Array) -> tuple[Array, ...]:
        call = jax.tree.unflatten(structure, arrays)
        if ring.strategy == "all_to_all":
            return exchanging.attend(shards, call)
        strategy: ModuleType = passing if ring.strategy == "ring" else gathering
        results = strategy.attend(shards, arranged(shards, call))[: len(specs.results)]
        axes = call.query.ndim - 3, call.query.ndim - 2  # of the tokens in the context and in the lse
        back = functools.partial(restore, layout=shards.layout, mesh_axis=shards.axis, is_natural=shards.is_natural)
        return tuple(back(result, axis=axis) for result, axis in zip(results, axes, strict=False))

    sharded = jax.shard_map(run, mesh=ring.mesh, in_specs=specs.arrays, out_specs=specs.results, check_vma=False)
    results: tuple[Array, ...] = sharded(*arrays)
    return results
