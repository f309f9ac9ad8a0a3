"""The figure of one module, for notebooks."""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.guide.page import render_sections
from jaxattn.guide.section import Equation, Numbers, Section, Switch, constant, single
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper

PROJECTIONS = [("query", "queries", "Q"), ("key", "keys", "K"), ("value", "values", "V")]
SHOWN = {
    "scores": ("S", "scores"), "scaled": ("S′", "scores"), "mask": ("M", "plain"), "masked": ("S″", "scores"),
    "weights": ("A", "weights"), "context": ("Z", "values"), "concatenation": ("Z_all", "values"),
    "output": ("output", "values"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shown:
    """A figure that notebooks draw: a page of its own, in a frame, so that its style and script stay inside.

    Args:
        page: the page, which loads nothing from elsewhere.
    """

    page: str

    def _repr_html_(self) -> str:
        frame = 'style="width: 100%; height: 46rem; border: 0" title="Attention, number by number"'
        return f'<iframe {frame} srcdoc="{html.escape(self.page)}"></iframe>'


def show(module: nn.Module, variables: Any, x: Float[Array, "T d_in"], tokens: Sequence[str] | None = None) -> Shown:
    """Draw every step of a stage on one sequence, with the arithmetic of every number.

    Args:
        module: one of the five stages.
        variables: its variables, `{"params": ...}`.
        x: token vectors `(T, d_in)`.
        tokens: T words, one for each row of `x`; None numbers them.

    Raises:
        TypeError: the module is not one of the stages.
        ValueError: `x` is not one sequence, or there are not as many tokens as rows.
        ImportError: jinja2 is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import SimpleSelfAttention
        >>> from jaxattn.guide import show
        >>> figure = show(SimpleSelfAttention(), {}, jnp.eye(2), tokens=["black", "cat"])
        >>> figure._repr_html_()[:7]
        '<iframe'
    """
    steps = trace(module, variables, x)
    T = len(steps["inputs"])
    words = [str(number) for number in range(T)] if tokens is None else [str(token) for token in tokens]
    if len(words) != T:
        raise ValueError(f"tokens has {len(words)} words, but x has {T} rows: pass one word for each row of x")
    return Shown(render_sections([module_section(module, variables, steps, words)]))


def module_section(module: nn.Module, variables: Any, steps: Trace, tokens: list[str]) -> Section:
    """Describe the steps of a stage as a section."""
    H = steps["weights"].shape[0] if steps["weights"].ndim == 3 else 0
    numbers, equations = {"inputs": constant(steps["inputs"], "token", "feature", symbol="X", note="passed as x")}, []
    if "queries" in steps.arrays:
        projected = _projections(module, variables["params"], steps)
        numbers, equations = numbers | projected[0], projected[1]
    numbers |= _attention_numbers(steps)
    return Section(
        id="module",
        title=steps.stage,
        tokens=tokens,
        query=len(tokens) - 1,
        paragraphs=[],
        numbers=numbers | _output_numbers(module, variables),
        equations=equations + _attention(steps, H) + _output(module, H),
        arcs="weights",
        switches=[Switch("head", "Head", [(str(head), str(head)) for head in range(H)], "0")] if H else [],
    )


def _projections(module: nn.Module, params: Any, steps: Trace) -> tuple[dict[str, Numbers], list[Equation]]:
    """Describe the projections: of each head on its own, of all heads together, or of the only head."""
    numbers, equations, note = {}, [], "a parameter of the module"
    together = isinstance(module, MultiHeadAttention)
    for short, name, symbol in PROJECTIONS:
        heads = [params[f"heads_{head}"][short] for head in range(getattr(module, "num_heads", 0))] \
            if isinstance(module, MultiHeadAttentionWrapper) else []  # fmt: skip
        kernel = jnp.stack([head["kernel"] for head in heads]) if heads else params[short]["kernel"]
        axes = ("head", "input", "feature")[0 if heads else 1 :]
        numbers[f"W {short}"] = constant(kernel, *axes, symbol=f"W_{short[0]}", note=note)
        numbers[name] = constant(steps[name], *steps.axes(name), symbol=symbol)
        operands, spec = ["inputs", f"W {short}"], "rk,hkc->hrc" if heads else "rk,kc->rc"
        if module.use_bias:
            bias = jnp.stack([head["bias"][None] for head in heads]) if heads else params[short]["bias"][None]
            numbers[f"b {short}"] = constant(bias, *axes, symbol=f"b_{short[0]}", note=note)
            operands, spec = [*operands, f"b {short}"], spec.replace("->", ",+h1c->" if heads else ",+1c->")
        result = f"joined {name}" if together else name
        equations.append(
            Equation(name.capitalize(), f"Each vector times W_{short[0]}.", "einsum", operands, result, spec)
        )
        if together:
            joined = jnp.hstack(list(steps[name]))  # (H, T, D) -> (T, H * D)
            numbers[result] = constant(joined, "token", "feature", symbol=f"{symbol}_all")
            equations.append(Equation(f"{name.capitalize()} of a head", "The head's columns.", "split", [result], name))
    return numbers, equations


def _attention_numbers(steps: Trace) -> dict[str, Numbers]:
    numbers = {}
    for name, (symbol, kind) in SHOWN.items():
        if name in steps.arrays:
            note = "the causal mask: 1 where the key is the query or comes before it" if name == "mask" else ""
            numbers[name] = constant(steps[name], *steps.axes(name), symbol=symbol, kind=kind, note=note)
    if "scaled" in numbers:
        numbers["width"] = single(steps["queries"].shape[-1], symbol="width", note="the number of elements of a key")
    return numbers


def _attention(steps: Trace, H: int) -> list[Equation]:
    """Describe the steps from scores to context, those that the stage has."""
    h = "h" if H else ""
    queries, keys, values = ("queries", "keys", "values") if "queries" in steps.arrays else ("inputs",) * 3
    last, equations = "scores", [
        Equation("Scores", "Each query with each key.", "einsum", [queries, keys], "scores", f"{h}rk,{h}ck->{h}rc")
    ]  # fmt: skip
    if "scaled" in steps.arrays:
        text = "Divide by the square root of the width of a key."
        equations.append(Equation("Scaled", text, "scale", ["scores", "width"], "scaled"))
        last = "scaled"
    if "mask" in steps.arrays:
        text = "Set the scores of keys that come after the query to −∞."
        equations.append(Equation("Masked", text, "mask", ["scaled", "mask"], "masked"))
        last = "masked"
    spec = f"{h}rk,{h}kc->{h}rc"
    return [
        *equations,
        Equation("Weights", "Softmax of each row.", "softmax", [last], "weights"),
        Equation("Context", "Average the values by each row.", "einsum", ["weights", values], "context", spec),
    ]  # fmt: skip


def _output(module: nn.Module, H: int) -> list[Equation]:
    if not H:
        return []
    joined = Equation("Side by side", "The context vectors of all heads.", "join", ["context"], "concatenation")
    if not isinstance(module, MultiHeadAttention):
        return [joined]
    operands, text = ["concatenation", "W out", "b out"], "The heads' results times W_out, plus a bias."
    return [joined, Equation("Output", text, "einsum", operands, "output", "rk,kc,+1c->rc")]


def _output_numbers(module: nn.Module, variables: Any) -> dict[str, Numbers]:
    if not isinstance(module, MultiHeadAttention):
        return {}
    out, note = variables["params"]["out"], "a parameter of the module"
    return {
        "W out": constant(out["kernel"], "input", "feature", symbol="W_out", note=note),
        "b out": constant(out["bias"][None], "bias", "feature", symbol="b_out", note=note),
    }
