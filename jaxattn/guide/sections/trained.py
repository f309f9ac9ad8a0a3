"""The section of a trained model: all its heads, and its predictions of the next word."""

from jaxattn.guide.section import Cell, Equation, Numbers, Section, Switch, Table, by_switch, constant, short, single
from jaxattn.guide.story import Story

CODE = """\
from jaxattn.training.saving import load_model
model, params = load_model({run!r})
logits, state = model.apply({{"params": params}}, tokens, mutable=["intermediates"])"""
EQUATIONS = [
    Equation("Scores", "Compare the head's queries and keys.", "einsum", ["queries", "keys"], "scores", "hrk,hck->hrc"),
    Equation("Scaled", "Divide by the square root of the width of one head.", "scale", ["scores", "width"], "scaled"),
    Equation("Masked", "Set the scores of later keys to −∞.", "mask", ["scaled", "mask"], "masked"),
    Equation("Weights", "Softmax of each row.", "softmax", ["masked"], "weights"),
    Equation("Context", "Average the head's values.", "einsum", ["weights", "values"], "context", "hrk,hkc->hrc"),
]


def trained_section(story: Story) -> Section:
    """Compute the section."""
    H = story.layers[0]["context"].shape[0]
    layer, head = story.best_head
    switches = [
        Switch("layer", "Layer", [(str(number), str(number)) for number in range(len(story.layers))], str(layer)),
        Switch("head", "Head", [(str(number), str(number)) for number in range(H)], str(head)),
    ]
    return Section(
        id="trained",
        title="A trained model",
        tokens=story.tokens,
        query=story.query,
        paragraphs=_paragraphs(story, H),
        numbers=_numbers(story),
        equations=EQUATIONS,
        code=CODE.format(run=story.run),
        arcs="weights",
        switches=switches,
        tables=[next_words_table(story)],
        opened=3,
    )


def _paragraphs(story: Story, H: int) -> list[str]:
    return [
        f"These are the numbers of a trained model: {story.run}, {len(story.layers)} layers of {H} heads. Choose a "
        "word to see which words each head attends to.",
        story.summary or "What an arc means depends on how much the model has learned.",
    ]


def _numbers(story: Story) -> dict[str, Numbers]:
    steps, note = story.layers[0], "computed by the layer from its input and its parameters"
    shown = {
        "queries": {"symbol": "Q", "note": note}, "keys": {"symbol": "K", "note": note},
        "values": {"symbol": "V", "note": note}, "scores": {"symbol": "S", "kind": "scores"},
        "scaled": {"symbol": "S′", "kind": "scores"}, "masked": {"symbol": "S″", "kind": "scores"},
        "weights": {"symbol": "A", "kind": "weights"}, "context": {"symbol": "Z"},
    }  # fmt: skip
    numbers = {
        name: by_switch("layer", {n: each[name] for n, each in enumerate(story.layers)}, *steps.axes(name), **words)
        for name, words in shown.items()
    }
    mask_note = "the causal mask: 1 where the key is the query or comes before it, 0 where it comes after"
    numbers["mask"] = constant(steps["mask"], "query", "key", symbol="M", kind="plain", note=mask_note)
    numbers["width"] = single(steps["queries"].shape[-1], symbol="width", note="the number of elements of a key")
    return numbers


def next_words_table(story: Story) -> Table:
    """List the likeliest next words after each token, with their probabilities."""
    rows = [
        (token, [Cell(f"{word} {short(probability)}", note=note) for word, probability in words])
        for token, words in zip(story.tokens, story.next_words, strict=True)
        for note in [f"the model's probability of the next word, after “{token}”: softmax of its logits"]
    ]
    columns = ["after", "likeliest", "2nd", "3rd", "4th", "5th"][: len(rows[0][1]) + 1]
    return Table("The likeliest next words and their probabilities", columns, rows)
