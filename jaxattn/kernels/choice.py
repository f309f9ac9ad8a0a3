"""Which kernel runs, and why."""

from types import ModuleType

import jax.numpy as jnp

from jaxattn.kernels import blockwise, cudnn, dense, few_queries, native, transforms
from jaxattn.kernels.call import AttentionCall

KERNELS: dict[str, ModuleType] = {"cudnn": cudnn, "dense": dense, "native": native, "blockwise": blockwise}

# Up to this many scores per head, dense is fastest for any number of heads; measured by `jaxattn benchmark`.
FEW_SCORES_PER_HEAD = 96 * 96


def choose(call: AttentionCall) -> str:
    """Return the name of the kernel that runs where the data lies."""
    asked = call.implementation
    if asked is None:
        if call.return_weights or has_few_scores_per_head(call):
            return "dense"
        chosen = transforms.choose(call)
        return "dense" if chosen == "small" else chosen
    if not isinstance(asked, str) or asked not in KERNELS:
        known = ", ".join(f"'{name}'" for name in KERNELS)
        raise ValueError(f"implementation={asked!r} is not known: write one of {known}, or None to choose")
    reason = KERNELS[asked].unsupported(call)
    if reason is not None:
        raise ValueError(f"implementation={asked!r} {reason}: write implementation=None to choose")
    return asked


def explain(call: AttentionCall) -> str:
    """Return a line for each kernel, first the one that runs."""
    chosen = choose(call)
    others = dict.fromkeys(KERNELS, f"{chosen} was chosen")
    others["dense"] = f"would store {call.num_scores} weights, {_megabytes(call)} MB in {jnp.dtype(call.wide).name}"
    why = {name: kernel.unsupported(call) or others[name] for name, kernel in KERNELS.items() if name != chosen}
    lines = [f"{name} does not: {reason}" for name, reason in why.items()]
    return "\n".join([f"{chosen} runs: {_reason(call, chosen)}", *lines])


def _reason(call: AttentionCall, chosen: str) -> str:
    """Return why this kernel was chosen."""
    if call.implementation is not None:
        return "implementation asks for it"
    if call.return_weights:
        return "it alone returns the weights"
    if chosen == "dense" and call.platform != "cpu" and not has_few_scores_per_head(call):
        return f"{_megabytes(call)} MB of scores fit in memory"
    T, S, _, _ = call.sizes
    return {
        "cudnn": "NVIDIA's kernel supports this call",
        "dense": f"{T} × {S} scores in each of {call.num_scores // max(1, T * S)} heads are few",
        "native": "it is the fastest on a CPU",
        "blockwise": few_queries.reason(call) or "its memory is linear in the tokens",
    }[chosen]


def has_few_scores_per_head(call: AttentionCall) -> bool:
    """Return whether dense is fastest whatever the batch and the platform are."""
    T, S, _, _ = call.sizes
    if not (isinstance(T, int) and isinstance(S, int)):  # an export may leave them open, and dense takes all
        return True
    return T * S <= FEW_SCORES_PER_HEAD and few_queries.unsupported(call) is not None


def _megabytes(call: AttentionCall) -> str:
    """Return how much memory the scores take."""
    return f"{jnp.dtype(call.wide).itemsize * call.num_scores / 1e6:.0f}"
