"""Section 4: several heads, one by one and in parallel, and the output projection."""

from typing import Any

import jax
import numpy as np
from jax import Array

from jaxattn.guide.section import Equation, Numbers, Section, Switch, Table, by_switch, constant, largest_difference
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper, parallel_from_stacked

ONE_BY_ONE, TOGETHER = {"way": ("stacked",)}, {"way": ("parallel", "projected")}
PROJECTIONS = [("query", "queries", "Q"), ("key", "keys", "K"), ("value", "values", "V")]
CODE = """\
from jaxattn import MultiHeadAttention, MultiHeadAttentionWrapper
heads = MultiHeadAttentionWrapper(num_heads={H}, features={D})  # one by one; features per head
layer = MultiHeadAttention(num_heads={H}, features={features})  # in parallel, with an output projection
output, weights = layer.apply(variables, x, return_weights=True)"""


def heads_section(story: Story) -> Section:
    """Compute the section."""
    params = story.stacked["params"]
    H, D = len(params), params["heads_0"]["value"]["kernel"].shape[-1]
    features = story.parallel["params"]["out"]["kernel"].shape[0]
    joined = {"params": parallel_from_stacked(params)}
    compiled = jax.jit(trace, static_argnums=0)
    traces = {
        "stacked": compiled(MultiHeadAttentionWrapper(H, D), story.stacked, story.inputs),
        "parallel": compiled(MultiHeadAttention(H, H * D), joined, story.inputs),
        "projected": compiled(MultiHeadAttention(H, features), story.parallel, story.inputs),
    }
    kernels = {"stacked": joined, "parallel": joined, "projected": story.parallel}
    return Section(
        id="heads",
        title="4 Several heads",
        tokens=story.tokens,
        query=story.query,
        paragraphs=_paragraphs(len(story.tokens), story.inputs.shape[-1], H, D, features),
        numbers=_projections(story, kernels, H) | _by_way(traces) | _output(story, traces),
        equations=_equations(),
        code=CODE.format(H=H, D=D, features=features),
        arcs="weights",
        switches=_switches(H),
        labels={"joined": [f"{head}: {number}" for head in range(H) for number in range(D)], "bias": ["bias"]},
        tables=[_differences(traces)],
    )


def _paragraphs(T: int, d_in: int, H: int, D: int, features: int) -> list[str]:
    joined = H * D
    return [
        "One head averages in one way. Several heads, each with its own matrices, can look for several things at once. "
        "Here are three computations.",
        f"One by one: each head multiplies the words' vectors by a matrix of its own, ({T}, {d_in}) · ({d_in}, {D}) = "
        f"({T}, {D}), {H} times, and the results are put side by side: ({T}, {joined}).",
        f"In parallel: the heads' matrices stand side by side in one, ({T}, {d_in}) · ({d_in}, {joined}) = "
        f"({T}, {joined}), which is split into heads: reshaped to ({T}, {H}, {D}) and transposed to ({H}, {T}, {D}). "
        "The numbers are the same, from one multiplication. Reshaping without transposing would mix words with heads.",
        f"In parallel, with an output projection: a layer of real models, with other parameters: {features} features "
        f"in total, {features // H} for each of {H} heads. Its last matrix, ({features}, {features}), combines what "
        "the heads found.",
    ]


def _switches(H: int) -> list[Switch]:
    ways = [
        ("stacked", "one by one"),
        ("parallel", "in parallel"),
        ("projected", "in parallel, with an output projection"),
    ]
    return [
        Switch("way", "Computation", ways, "stacked"),
        Switch("head", "Head", [(str(head), str(head)) for head in range(H)], "0"),
    ]


def _equations() -> list[Equation]:
    own = [
        Equation(
            name.capitalize(), f"Each word's vector times the head's own W_{short[0]}.", "einsum",
            ["inputs", f"W {short}"], name, "rk,hkc->hrc", ONE_BY_ONE,
        )
        for short, name, _ in PROJECTIONS
    ]  # fmt: skip
    together = [
        Equation(
            f"All {name}", f"Each word's vector times the matrix of all heads, W_{short[0]}.", "einsum",
            ["inputs", f"joined W {short}"], f"joined {name}", "rk,kc->rc", TOGETHER,
        )
        for short, name, _ in PROJECTIONS
    ]  # fmt: skip
    split = [
        Equation(name.capitalize(), "The head's columns.", "split", [f"joined {name}"], name, when=TOGETHER)
        for _, name, _ in PROJECTIONS
    ]
    return [*own, *together, *split, *_attention_equations()]


def _attention_equations() -> list[Equation]:
    output_text = "The heads' results times W_out, plus a bias: the heads are combined."
    return [
        Equation("Scores", "Compare queries and keys.", "einsum", ["queries", "keys"], "scores", "hrk,hck->hrc"),
        Equation(
            "Scaled", "Divide by the square root of the width of one head.", "scale", ["scores", "width"], "scaled"
        ),
        Equation("Masked", "Set the scores of later keys to −∞.", "mask", ["scaled", "mask"], "masked"),
        Equation("Weights", "Softmax of each row.", "softmax", ["masked"], "weights"),
        Equation(
            "Context", "Average the head's values.", "einsum", ["weights", "values"], "context", "hrk,hkc->hrc"
        ),
        Equation("Side by side", "The context vectors of all heads.", "join", ["context"], "concatenation"),
        Equation(
            "Output", output_text, "einsum", ["concatenation", "W out", "bias"], "output", "rk,kc,+1c->rc",
            {"way": ("projected",)},
        ),
    ]  # fmt: skip


def _projections(story: Story, kernels: dict[str, Any], H: int) -> dict[str, Numbers]:
    """Collect the inputs and the matrices, joined and split into heads."""
    note = story.parameter_note
    numbers = {"inputs": constant(story.inputs, "token", "feature", symbol="X", note=story.input_note)}
    for short, name, symbol in PROJECTIONS:
        joined = {way: variables["params"][short]["kernel"] for way, variables in kernels.items()}
        products = {way: np.asarray(story.inputs) @ np.asarray(kernel) for way, kernel in joined.items()}
        shown = {"symbol": f"W_{short[0]}", "note": note}
        numbers[f"W {short}"] = constant(_split(joined["stacked"], H), "head", "input", "feature", **shown)
        numbers[f"joined W {short}"] = by_switch("way", joined, "input", "joined", **shown)
        numbers[f"joined {name}"] = by_switch("way", products, "token", "joined", symbol=f"{symbol}_all")
    return numbers


def _split(joined: Array, H: int) -> np.ndarray:
    """`(rows, H * D)` -> `(H, rows, D)`."""
    return np.moveaxis(np.asarray(joined).reshape(joined.shape[0], H, -1), 1, 0)


def _by_way(traces: dict[str, Trace]) -> dict[str, Numbers]:
    symbols = {
        "queries": ("Q", "values"), "keys": ("K", "values"), "values": ("V", "values"), "scores": ("S", "scores"),
        "scaled": ("S′", "scores"), "masked": ("S″", "scores"), "weights": ("A", "weights"), "context": ("Z", "values"),
        "concatenation": ("Z_all", "values"), "output": ("output", "values"),
    }  # fmt: skip
    numbers = {}
    for name, (symbol, kind) in symbols.items():
        arrays = {way: steps[name] for way, steps in traces.items()}
        axes = ("token", "joined") if name == "concatenation" else traces["projected"].axes(name)
        numbers[name] = by_switch("way", arrays, *axes, symbol=symbol, kind=kind)
    return numbers


def _output(story: Story, traces: dict[str, Trace]) -> dict[str, Numbers]:
    out, steps = story.parallel["params"]["out"], traces["stacked"]
    note = "the causal mask: 1 where the key is the query or comes before it, 0 where it comes after"
    widths = {way: np.full((1, 1), float(steps["queries"].shape[-1])) for way, steps in traces.items()}
    return {
        "width": by_switch("way", widths, "", "", symbol="width", kind="plain", note="the number of elements of a key"),
        "mask": constant(steps["mask"], "query", "key", symbol="M", kind="plain", note=note),
        "W out": constant(out["kernel"], "input", "feature", symbol="W_out", note=story.parameter_note),
        "bias": constant(np.asarray(out["bias"])[None], "bias", "feature", symbol="b", note=story.parameter_note),
    }


def _differences(traces: dict[str, Trace]) -> Table:
    stacked, parallel = traces["stacked"], traces["parallel"]
    names = ("queries", "keys", "values", "weights", "context")
    rows = [(name, [largest_difference(stacked[name], parallel[name])]) for name in names]
    return Table("In parallel and one by one", ["array", "largest difference"], rows)
