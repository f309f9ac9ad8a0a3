"""A model of the time of a training step on 8, 64 and 1024 H100s, from published rates: a table, not a measurement.

A device's work is counted: operations in matrix products and in attention, bytes of memory, bytes sent; each has a
rate. `scaling_check.py` compares the same sums, with the rates of this machine, with measured steps.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxattn.benchmark.report import table_head, table_line
from jaxattn.benchmark.volumes import Sizes, context_bytes, gathered_context_bytes, model_bytes, shard_bytes

# NVIDIA, "H100 Tensor Core GPU" data sheet, H100 SXM: 1979 TFLOP/s in bfloat16 with sparsity, half of that without;
# 3.35 TB/s and 80 GB of HBM3; NVLink 4 with 900 GB/s, 450 in each direction. NVIDIA, "DGX H100" data sheet: a
# ConnectX-7 with 400 Gb/s (InfiniBand NDR) for each of a node's eight GPUs.
BF16, HBM, CAPACITY = 989.5e12, 3.35e12, 80e9
NVLINK, INFINIBAND, NODE = 450e9, 50e9, 8
# What part of these rates programs reach is an assumption. Shah et al. 2024 ("FlashAttention-3") measured attention at
# up to 75 % forward; the backward pass, and heads that do not fill the GPU, are slower.
PRODUCTS_REACH, ATTENTION_REACH, MEMORY_REACH, LINKS_REACH = 0.6, 0.5, 0.8, 0.8


class Rates(NamedTuple):
    """What one device does in a second: operations in products and in attention, and bytes of memory."""

    products: float
    attention: float
    memory: float


H100 = Rates(PRODUCTS_REACH * BF16, ATTENTION_REACH * BF16, MEMORY_REACH * HBM)


class Layout(NamedTuple):
    """A mesh, outermost axis first: copies of the model, parts of the sequence, parts of the heads.

    Keys travel in a ring, or are gathered. `zigzag` says whether each device has an early and a late part of its
    sequence, as causal attention needs for equal work; in order, a ring waits at each step for a device whose keys are
    all unmasked.
    """

    data: int = 1
    context: int = 1
    model: int = 1
    zigzag: bool = True
    gather_keys: bool = False

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.data * self.context * self.model


class Work(NamedTuple):
    """What one device does in a step."""

    products: float  # operations
    attention: float  # operations
    memory: float  # bytes read and written

    def seconds(self, rates: Rates) -> float:
        """Return the time, one thing at a time."""
        return sum(amount / rate for amount, rate in zip(self, rates, strict=True))


class Sent(NamedTuple):
    """Seconds in which one device sends parameters and gradients, activations, and keys."""

    parameters: float
    activations: float
    keys: float


def work_of_step(
    sizes: Sizes, T: int, layout: Layout, width: int, recompute: bool, shards: int, sequences: int = 1
) -> Work:
    """Count the work of one device.

    Args:
        sizes: the model.
        T: tokens in a sequence.
        layout: how it is split.
        width: bytes of a number.
        recompute: whether the backward pass computes each layer's activations again.
        shards: how many devices share the optimizer's state.
        sequences: for each index along the axis "data".
    """
    n, tokens = layout.context * layout.model, sequences * T / layout.context
    forwards = 2 if recompute else 1
    # Two products forward, five backward, on half of the entries.
    attention = (2 * forwards + 5) * sequences * T**2 * sizes.width * sizes.layers / n
    if not layout.zigzag:
        attention *= (2 * layout.context - 1) / layout.context
    # A layer stores 17 numbers for each token and place of its width (Korthikanti et al. 2022, "Reducing Activation
    # Recomputation", without the scores): each is written and read, and so is its gradient.
    activations = 2 * (forwards + 1) * 17 * width * tokens * sizes.width * sizes.layers / layout.model
    optimizer = 7 * 4 * sizes.parameters / shards  # reads parameter, gradient and two moments, writes all but one
    return Work(2 * (forwards + 2) * sizes.multiplied * sequences * T / n, attention, activations + optimizer)


def sent_in_step(sizes: Sizes, T: int, layout: Layout, recompute: bool) -> Sent:
    """Return how long each thing is sent; parameters and optimizer are sharded over "data" and "context"."""
    tokens, forwards = T / layout.context, 2 if recompute else 1
    shards = layout.data * layout.context
    of_parameters = shard_bytes(sizes.parameters / layout.model, shards, 4, gathers=2)
    of_activations = model_bytes(sizes, tokens, layout.model, 2, passes=forwards + 1)
    part = sizes._replace(kv_width=sizes.kv_width // layout.model)
    # A collective that spans nodes sends through the adapters of all its members in a node, a hop through one.
    within, adapter = LINKS_REACH * NVLINK, LINKS_REACH * INFINIBAND
    over_nodes = min(within, adapter * max(1, NODE // layout.model))
    in_node = layout.context * layout.model <= NODE
    if layout.gather_keys:
        of_keys, rate = gathered_context_bytes(part, T, layout.context, 2, forwards), over_nodes
    else:
        of_keys, rate = context_bytes(part, tokens, layout.context, 2, forwards), adapter
    return Sent(
        parameters=of_parameters / (within if layout.devices <= NODE else over_nodes),
        activations=of_activations / within,
        keys=of_keys / (within if in_node else rate),
    )


def memory_of_device(sizes: Sizes, T: int, layout: Layout, recompute: bool) -> float:
    """Return bytes: state and gradients in float32, activations in bfloat16, and logits with gradients in float32.

    Of the 17 numbers of a layer, 5 are whole on each device that shares its heads.
    """
    tokens = T / layout.context
    state = 16 * sizes.parameters / layout.devices
    layer = 2 * tokens * sizes.width * (5 + 12 / layout.model)
    kept = 2 * tokens * sizes.width * sizes.layers + layer if recompute else layer * sizes.layers
    keys = 2 * T * sizes.kv_width / layout.model * (2 + 4) if layout.gather_keys else 0  # of one layer, with gradients
    return state + kept + keys + 8 * tokens * sizes.vocab_size


class Estimate(NamedTuple):
    """One line of the table: seconds if sending overlaps with all computing, and if it overlaps with nothing."""

    T: int
    layout: Layout
    recompute: bool
    memory: float
    work: Work
    sent: Sent
    shortest: float
    longest: float
    utilization: tuple[float, float]


def estimate(sizes: Sizes, T: int, layout: Layout) -> Estimate:
    """Estimate a step on H100s; layers are recomputed only if their activations do not fit."""
    recompute = memory_of_device(sizes, T, layout, False) > CAPACITY
    work = work_of_step(sizes, T, layout, 2, recompute, layout.devices)
    sent = sent_in_step(sizes, T, layout, recompute)
    computing, sending = work.seconds(H100), sum(sent)
    # What the model needs, without recomputing and waiting, relative to the published rate.
    useful = work_of_step(sizes, T, layout._replace(zigzag=True), 2, False, layout.devices)
    least = (useful.products + useful.attention) / BF16
    times = max(computing, sending), computing + sending
    memory = memory_of_device(sizes, T, layout, recompute)
    return Estimate(T, layout, recompute, memory, work, sent, *times, (least / times[1], least / times[0]))


# The shape of GPT-3 XL (Brown et al. 2020): 24 layers of width 2048 with 16 heads, 1.3 billion parameters.
MODEL = Sizes(layers=24, width=2048, kv_width=2048, vocab_size=50257)
MILLION = 2**20
LAYOUTS = (
    (8192, Layout(data=8)),
    (8192, Layout(data=64)),
    (8192, Layout(data=1024)),
    (8192, Layout(data=128, model=8)),
    (MILLION, Layout(context=8, zigzag=False)),
    (MILLION, Layout(context=8)),
    (MILLION, Layout(context=64)),
    (MILLION, Layout(context=64, gather_keys=True)),
    (MILLION, Layout(context=8, model=8)),
    (MILLION, Layout(context=1024)),
    (MILLION, Layout(context=1024, gather_keys=True)),
    (MILLION, Layout(context=128, model=8)),
    (MILLION, Layout(data=16, context=64, gather_keys=True)),
    (MILLION, Layout(data=16, context=8, model=8)),
)


def table() -> Iterator[str]:
    """Lay out the estimates as a table in Markdown."""
    columns = ("context", "GPUs", "data × context × model", "memory", "computing", "sending parameters",
               "activations", "keys", "step", "tokens/s", "of 989 TFLOP/s")  # fmt: skip
    yield from table_head(*columns)
    for T, layout in LAYOUTS:
        each = estimate(MODEL, T, layout)
        data, context, model, *_ = layout
        order = "" if layout.zigzag else ", in order"
        order += ", keys gathered" if layout.gather_keys else ""
        fits = "" if each.memory <= CAPACITY else ", too much"
        memory = f"{each.memory / 1e9:.0f} GB{', recomputing' * each.recompute}{fits}"
        low, high = each.utilization
        entries = (
            f"{T:,}", f"{layout.devices}", f"{data} × {context} × {model}{order}", memory,
            _time(each.work.seconds(H100)), *map(_time, each.sent), f"{_time(each.shortest)} to {_time(each.longest)}",
            f"{_round(data * T / each.longest)} to {_round(data * T / each.shortest)}", f"{low:.0%} to {high:.0%}",
        )  # fmt: skip
        yield table_line(*entries)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _round(number: float) -> str:
    """Write a large number with three digits that count."""
    return f"{float(f'{number:.3g}'):,.0f}"
