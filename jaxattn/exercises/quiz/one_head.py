"""Questions on one head: scores, softmax, scale, mask, dropout. The numbers are computed when a question is asked."""

import numpy as np

from jaxattn.exercises.quiz.computed import computed
from jaxattn.exercises.quiz.question import Question, book, listed


def shape_of_the_scores() -> Question:
    x = book()["x"]
    T, d = x.shape
    return Question(
        f"Six tokens have vectors of width {d}. What is the shape of the scores x · xᵀ?",
        (f"({T}, {T})", "There is a score for each pair: a row for each query, a column for each key."),
        {
            f"({d}, {d})": f"That is xᵀ · x, which sums over the {T} tokens and compares the {d} features.",
            f"({T}, {d})": "That is the shape of x, and of the context. Scores have no axis of features: it is summed over.",
            f"({T},)": "That would be one query's row. Every token is a query.",
        },
    )


def which_score_is_largest() -> Question:
    x, words = book()["x"], book()["words"]
    scores = computed()["scores"]
    return Question(
        f'Scores are dot products of the tokens\' vectors. "{words[1]}" {listed(x[1])} is compared with "{words[2]}" '
        f'{listed(x[2])} and "{words[4]}" {listed(x[4])}. Which score is larger?',
        (
            f'with "{words[2]}"',
            f"It is {scores[1, 2]:.4f}, and {scores[1, 4]:.4f} with the other: similar vectors, large product.",
        ),
        {
            f'with "{words[4]}"': f"That score is {scores[1, 4]:.4f}; the other is {scores[1, 2]:.4f}, since its vector points the same way.",
            "both are equal": f"They are {scores[1, 2]:.4f} and {scores[1, 4]:.4f}.",
        },
    )


def what_softmax_makes() -> Question:
    scores, weights = computed()["scores"], computed()["weights"]
    return Question(
        f"Softmax turns the row of scores {listed(scores[1])} into weights. What do these sum to?",
        ("1", f"The weights are {listed(weights[1], 4)}; softmax divides by their sum."),
        {
            f"{scores[1].sum():.2f}, as the scores": "Softmax divides by the sum of the exponentials, so the sum is 1.",
            "6, the number of keys": f"No weight here exceeds {weights[1].max():.4f}; they share a total of 1.",
        },
    )


def axis_of_softmax() -> Question:
    wrong = computed()["softmax over queries"]
    return Question(
        "Scores are (queries, keys). Along which axis does softmax sum?",
        ("the keys, axis=-1", "Each query shares out a weight of 1 among its keys."),
        {
            "the queries, axis=0": f"Then columns sum to 1, and query 0's weights to {wrong[0].sum():.4f}: no average any more. "
            "(With symmetric scores the entries look deceptively alike.)",
            "both": f"Then all weights together sum to 1, and each query's only to about {1 / 6:.2f}.",
        },
    )


def shift_of_scores() -> Question:
    before, after = computed()["before 100"], computed()["after 100"]
    return Question(
        "100 is added to every score of a row. What happens to its weights?",
        ("nothing", f"{listed(before, 4)} before, {listed(after, 4)} after: exp(100) cancels in the fraction."),
        {
            "they grow": f"They still sum to 1: {listed(after, 4)}. Only differences between scores count.",
            "they become NaN": "exp(103) overflows float32 (it is 5e44), but a softmax that subtracts the row's "
            f"maximum first gives {listed(after, 4)}.",
        },
    )


def what_a_context_is() -> Question:
    x, context = book()["x"], computed()["context"]
    return Question(
        "In stage 1, what is a token's context vector?",
        (
            "an average of all tokens' vectors, weighted by its row of weights",
            f"The second token's is {listed(context[1], 4)}.",
        ),
        {
            "the vector of the token with the largest weight": f"That would be {listed(x[1])}; softmax mixes all: {listed(context[1], 4)}.",
            "the sum of all tokens' vectors": f"That would be {listed(x.sum(0))}; the weights sum to 1: {listed(context[1], 4)}.",
            "its row of weights": "That has a number for each token. The context has a number for each feature.",
        },
    )


def why_three_matrices() -> Question:
    plain, projected = computed()["scores"], computed()["projected scores"]
    return Question(
        "Stage 1's scores are symmetric: i attends to j as j to i. What do query and key matrices of their own change?",
        (
            "the score of i and j may differ from that of j and i",
            f"Without: {plain[0, 1]:.4f} and {plain[1, 0]:.4f}. With: {projected[0, 1]:.4f} and {projected[1, 0]:.4f}.",
        ),
        {
            "nothing, they only make vectors shorter": f"The scores of tokens 0 and 1 become {projected[0, 1]:.4f} and {projected[1, 0]:.4f}: no longer equal.",
            "each row now sums to 1": "Softmax does that, with or without matrices.",
        },
    )


def what_to_scale_by() -> Question:
    return Question(
        "A model's vectors are 768 wide, and its queries and keys 64. By what are scores divided?",
        ("√64 = 8", "A dot product of 64 products has 64 times the variance of one."),
        {
            "√768 ≈ 27.7": f"That is the model's width. Scores of standard deviation 8 would become {8 / 768**0.5:.2f}, and the weights too even.",
            "64": f"Scores of standard deviation 8 would become {8 / 64:.3f}: nearly all weights alike.",
            "√12, the number of heads": "Heads do not enter a dot product; its width does.",
        },
    )


def why_to_scale() -> Question:
    scores, sharp, even = (computed()[name] for name in ("wide scores", "largest weight", "largest weight, scaled"))
    return Question(
        "Random queries and keys of width 512 are compared without scaling. What does softmax make of it?",
        (
            "nearly all weight on one key, and so nearly no gradient",
            f"The largest weight is {sharp:.2f} on average; scaled by 1/√512 it is {even:.2f}.",
        ),
        {
            "nearly equal weights": f"The scores' standard deviation is {scores.std():.1f}, and exp blows that up: the largest weight is {sharp:.2f}.",
            "an overflow": f"The largest score is {scores.max():.1f}, and softmax subtracts it first.",
        },
    )


def what_the_mask_looks_like() -> Question:
    ones = np.ones((3, 3), int)
    return Question(
        "A causal mask for three tokens, with 1 for may attend: what is it?",
        (str(np.tril(ones).tolist()), "Token i attends to itself and to what came before: jnp.tril."),
        {
            str(
                np.triu(ones).tolist()
            ): "That is the upper triangle: each token would attend to itself and to the future.",
            str(
                np.tril(ones, -1).tolist()
            ): "A token may attend to itself; here the first token could attend to nothing.",
            str(
                np.tril(ones, 1).tolist()
            ): "It is off by one: each token would attend to the next one, which it is to predict.",
        },
    )


def zero_for_masked_scores() -> Question:
    wrong = computed()["scores times mask"]
    return Question(
        "Scores are multiplied by a mask of 0 and 1 before the softmax. What is wrong with that?",
        (
            "a score of 0 still gets weight, because exp(0) = 1",
            f"[2, -1, -1] with only the first key allowed gives {listed(wrong, 3)} in place of [1, 0, 0].",
        ),
        {
            "nothing": f"[2, -1, -1] with only the first key allowed gives {listed(wrong, 3)}: masked keys have weight.",
            "the row sums to less than 1": f"It sums to {wrong.sum():.2f}, but masked keys have a share of it.",
        },
    )


def mask_after_softmax() -> Question:
    masked, same = computed()["masked weights"], computed()["renormalized"]
    again = computed()["softmax of masked weights"]
    return Question(
        "Weights are masked after the softmax. What is left to do?",
        (
            "divide each row by its new sum",
            f"The second row sums to {masked[1].sum():.4f}; divided by that it is {listed(same[1])}, as if masked before.",
        ),
        {
            "nothing": f"The second row sums to {masked[1].sum():.4f}, so its context would be too small.",
            "apply softmax again": f"That gives masked keys weight: {listed(again[1])}, since exp(0) = 1.",
        },
    )


def does_the_future_leak() -> Question:
    before, after = computed()["renormalized"], computed()["renormalized without the last"]
    return Question(
        "Masked after the softmax, later keys were part of its sum. Do they influence the renormalized weights?",
        (
            "no, the sum cancels",
            f"With and without the last token, row 1 is {listed(before[1], 4)} and {listed(after[1], 4)}.",
        ),
        {
            "yes, through the sum": f"Dividing by the new sum removes it: row 1 is {listed(before[1], 4)} and {listed(after[1], 4)} if the last token changes."
        },
    )


def fully_masked_row() -> Question:
    row, ours = computed()["softmax of −∞"], computed()["weights of a masked row"]
    equal = computed()["softmax of -1e30"]
    return Question(
        "A query may attend to no key at all (padding, say). What does a plain softmax over −∞ scores give?",
        ("NaN, as 0 / 0", f"{listed(row)}; jaxattn gives {listed(ours)}, with gradients of 0."),
        {
            "zeros": f"All exponentials are 0, and so is their sum: {listed(row)}.",
            "equal weights": f"That is what a large negative number such as -1e30 gives, {listed(equal)}; −∞ gives {listed(row)}.",
        },
    )


def factor_of_dropout() -> Question:
    kept = computed()["1000 ones"]
    return Question(
        "Dropout at a rate of 0.2 sets weights to 0. By what are the others multiplied?",
        (
            "1 / (1 - 0.2) = 1.25",
            f"Of 1000 ones, {int((kept > 0).sum())} are kept as {kept.max():.2f}; their mean is {kept.mean():.3f}.",
        ),
        {
            "1 / 0.2 = 5": f"Then the mean would be {5 * float((kept > 0).mean()):.2f}, not 1. At the book's rate of 0.5 both factors are 2.",
            "0.8": f"Then the mean would be {0.8 * float((kept > 0).mean()):.2f}, not 1: survivors must make up for the others.",
            "nothing": f"Then the mean would be {float((kept > 0).mean()):.2f}, and training and use would differ.",
        },
    )


def rows_after_dropout() -> Question:
    weights = computed()["four rows"]
    return Question(
        "After dropout, does each row of the weights still sum to 1?",
        ("only on average", f"Four rows of eight equal weights sum to {listed(weights.sum(-1))} at a rate of 0.5."),
        {
            "yes, survivors are rescaled": f"By a fixed factor, whoever survives: four rows sum to {listed(weights.sum(-1))}.",
            "no, always to less": f"They sum to {listed(weights.sum(-1))}: more as often as less.",
        },
    )


def dropout_when_used() -> Question:
    return Question(
        "A trained model writes a text. Is dropout on?",
        ("no: deterministic=True, the default", "Dropout is for training; here each call gives the same output."),
        {
            "yes, as in training": "Its outputs would be random: of 100 weights at a rate of 0.1, about 10 would be missing at each step.",
            "yes, but without rescaling": "Because survivors are rescaled in training, nothing has to be done afterwards.",
        },
    )


def same_key_twice() -> Question:
    first, other = computed()["one key"], computed()["another key"]
    return Question(
        "dropout(weights, 0.5, key) is called twice with the same key. What differs?",
        ("nothing", f"Both give {listed(first, 0)}. JAX's keys are values: split one to get others."),
        {
            "other entries are dropped": f"That needs another key, which gives {listed(other, 0)} in place of {listed(first, 0)}.",
        },
    )


QUESTIONS = (
    shape_of_the_scores,
    which_score_is_largest,
    what_softmax_makes,
    axis_of_softmax,
    shift_of_scores,
    what_a_context_is,
    why_three_matrices,
    what_to_scale_by,
    why_to_scale,
    what_the_mask_looks_like,
    zero_for_masked_scores,
    mask_after_softmax,
    does_the_future_leak,
    fully_masked_row,
    factor_of_dropout,
    rows_after_dropout,
    dropout_when_used,
    same_key_twice,
)
