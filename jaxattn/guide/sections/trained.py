"""The section of a trained model: all its heads, and its predictions of the next word."""

from jaxattn.guide.section import Figure, Section, Step, Switch, by_switch, constant, token_labels
from jaxattn.guide.story import Story

FIGURES = [
    Figure("Weights", "weights", "weights", "mask"),
    Figure("Probability of the next word", "next", "weights"),
]
CODE = """\
from jaxattn.training.saving import load_model
model, params = load_model({run!r})
logits, state = model.apply({{"params": params}}, tokens, mutable=["intermediates"])"""


def trained_section(story: Story) -> Section:
    """Compute the section."""
    H, _, D = story.layers[0]["context"].shape
    layer, head = story.best_head
    numbers = {
        name: by_switch(
            "layer", {number: steps[name] for number, steps in enumerate(story.layers)}, *story.layers[0].axes(name)
        )
        for name in ("scores", "scaled", "masked", "weights", "context")
    }
    numbers["mask"] = constant(story.layers[0]["mask"], "query", "key")
    numbers["next"] = constant(story.next_probabilities, "token", "next")
    switches = [
        Switch("layer", "Layer", [(str(number), str(number)) for number in range(len(story.layers))], str(layer)),
        Switch("head", "Head", [(str(number), str(number)) for number in range(H)], str(head)),
    ]
    title, paragraphs, steps = "A trained model", _paragraphs(story, H), _steps(D)
    code, labels = CODE.format(run=story.run), token_labels(story) | {"next": list(story.next_words)}
    return Section("trained", title, paragraphs, switches, numbers, "weights", steps, FIGURES, code, labels)


def _paragraphs(story: Story, H: int) -> list[str]:
    return [
        f"These are the numbers of a trained model: {story.run}, {len(story.layers)} layers of {H} heads. Choose a "
        "token to see which tokens each head attends to. The last table shows the probability that the model gives to "
        "some words, after each token.",
        story.summary or "What an arc means depends on how much the model has learned.",
    ]


def _steps(D: int) -> list[Step]:
    return [
        Step("score", "the query times each key", "scores"),
        Step("scale", f"divided by the square root of the head's width, {D}", "scaled"),
        Step("mask", "−∞ for keys after the query", "masked"),
        Step("softmax", "normalized to positive weights that sum to 1", "weights"),
        Step("context", "the average of the head's values by these weights", "context"),
    ]
