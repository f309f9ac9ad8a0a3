"""Questions on batches, heads, caches and cost."""

from typing import Any

import jax
import numpy as np

from jaxattn import CausalAttention, MultiHeadAttention, MultiHeadAttentionWrapper
from jaxattn.exercises.quiz.computed import computed
from jaxattn.exercises.quiz.question import Question, listed


def _number_of_parameters(module: Any, width: int) -> int:
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), np.ones((2, width), np.float32)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def shape_of_a_batch() -> Question:
    module, x = CausalAttention(features=4), np.ones((8, 6, 3), np.float32)
    shape = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, return_weights=True)[0][1]).shape
    return Question(
        "Eight sequences of six tokens go through causal attention. What is the shape of the weights?",
        (str(shape), "Each example has weights of its own: no token attends to another example."),
        {
            "(48, 48)": "That would be one long sequence of 48 tokens, in which examples attend to each other.",
            "(6, 6)": "That is one example's; a batch has eight of them.",
            "(8, 6, 4)": "That is the shape of the output, with features in place of keys.",
        },
    )


def dropout_under_vmap() -> Question:
    shared, split = computed()["outputs of one key"], computed()["outputs of split keys"]
    return Question(
        "Two equal examples go through vmap with dropout, and in_axes=None for the key. Are their outputs equal?",
        (
            "yes: they drop the same entries",
            f"The outputs differ by {abs(shared[0] - shared[1]).max():.2f}; with a split key, by {abs(split[0] - split[1]).max():.2f}.",
        ),
        {
            "no, dropout is random": f"One key gives one set of entries: the outputs differ by {abs(shared[0] - shared[1]).max():.2f}. Split the key.",
        },
    )


def width_of_stacked_heads() -> Question:
    module = MultiHeadAttentionWrapper(num_heads=2, features=2)
    shape = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), np.ones((6, 3), np.float32))[0]).shape
    return Question(
        "MultiHeadAttentionWrapper(num_heads=2, features=2) gets six tokens. What is the shape of its output?",
        (str(shape), "features is the width of one head, and the heads stand side by side."),
        {
            "(6, 2)": "That is one head. For outputs of width 2 with two heads, write features=1.",
            "(2, 6, 2)": "Heads are joined along the width, not stacked.",
            "(12, 2)": "Heads are joined along the width, not along the tokens.",
        },
    )


def width_of_parallel_heads() -> Question:
    module = MultiHeadAttention(num_heads=2, features=4)
    shape = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), np.ones((6, 3), np.float32))[0]).shape
    return Question(
        "MultiHeadAttention(num_heads=2, features=4): how wide is each head?",
        ("2", f"features is the width of all heads together; the output is {shape}."),
        {
            "4": "That would be the wrapper of stage 4a, whose features is the width of one head; its output would be 8 wide.",
            "8": "Each head has features / num_heads = 2.",
        },
    )


def view_before_transpose() -> Question:
    x = np.arange(12).reshape(3, 4)  # three tokens, two heads of width 2
    right, wrong = x.reshape(3, 2, 2).swapaxes(0, 1), x.reshape(2, 3, 2)
    return Question(
        f"Three tokens {x.tolist()} are split into two heads of width 2. What does head 0 get?",
        (
            str(right[0].tolist()),
            "The first two numbers of each token: reshape to (T, H, D), then swap tokens and heads.",
        ),
        {
            str(
                wrong[0].tolist()
            ): "That is a direct reshape to (H, T, D): its second row is the other half of the first token.",
            str(x.T[:2].tolist()): "That is transposed: rows must be tokens.",
        },
    )


def order_of_joining() -> Question:
    heads = np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]])  # (H, T, D)
    right, wrong = heads.swapaxes(0, 1).reshape(3, 4), heads.reshape(3, 4)
    return Question(
        f"Heads {heads.tolist()} of shape (H=2, T=3, D=2) are joined to (3, 4). What is the first row?",
        (
            str(right[0].tolist()),
            "The first token's vector of head 0, then of head 1: swap to (T, H, D), then reshape.",
        ),
        {
            str(wrong[0].tolist()): "A direct reshape joins the first two tokens of head 0 to one row.",
            str([1, 7, 2, 8]): "The features of a head stay together.",
        },
    )


def what_the_output_projection_does() -> Question:
    return Question(
        "What does stage 4b's output projection add to the joined heads?",
        ("it mixes the heads", "Before it, each number of the output comes from one head alone."),
        {
            "it makes the weights sum to 1": "Softmax has done that already, in each head.",
            "it keeps the future out": "The mask does. The projection works on each token alone.",
            "nothing, it can be left out": "The heads would stand side by side and never be combined; its "
            f"{768 * 768 + 768:,} numbers in GPT-2 are trained for that.",
        },
    )


def more_heads_more_weights() -> Question:
    few, many = (_number_of_parameters(MultiHeadAttention(heads, 768), 768) for heads in (1, 12))
    return Question(
        "MultiHeadAttention(1, 768) is changed to 12 heads. How many more parameters does it have?",
        ("as many as before", f"{few:,} and {many:,}: the same matrices, split into heads."),
        {
            "12 times as many": f"Both have {many:,}: heads share the width, 768 / 12 = 64 for each.",
            "fewer": f"Both have {many:,}.",
        },
    )


def size_of_gpt2() -> Question:
    count = _number_of_parameters(MultiHeadAttention(12, 768), 768)
    return Question(
        "How many parameters has one attention layer as large as GPT-2 small's (width 768, no query, key, value biases)?",
        (f"{count:,}", "Four matrices of 768 × 768, and a bias of 768 for the output."),
        {
            f"{3 * 768 * 768:,}": "Those are query, key and value. The output projection has a matrix and a bias, too.",
            f"{12 * 4 * 768 * 768:,}": "Each of the 12 heads is 64 wide; all together are 768 wide.",
        },
    )


def cost_of_length() -> Question:
    short, long = 1024**2, 2048**2
    return Question(
        "A text becomes twice as long. How many times as many scores are there?",
        ("4", f"1024 tokens have {short:,} pairs, 2048 have {long:,}."),
        {
            "2": f"Each of twice as many queries meets twice as many keys: {long:,} in place of {short:,}.",
            "8": f"{long // short} times: {long:,} in place of {short:,}.",
        },
    )


def memory_of_weights() -> Question:
    megabytes = 12 * 4096 * 4096 * 4 / 1e6
    return Question(
        "A layer with 12 heads stores all weights of 4096 tokens in float32. How much memory is that?",
        (f"{megabytes:,.0f} MB", "12 · 4096 · 4096 · 4 bytes. Blockwise attention never stores them."),
        {
            f"{megabytes / 12:,.0f} MB": "That is one head's.",
            f"{12 * 4096 * 4 / 1e6:,.1f} MB": "That is one row for each head; there is a row for each of 4096 queries.",
        },
    )


def size_of_a_cache() -> Question:
    size = 2 * 12 * 768 * 4
    return Question(
        "GPT-2 small (12 layers, width 768) writes a text in float32. How much does its KV cache grow with each token?",
        (f"{size:,} bytes", "A key and a value of 768 numbers of 4 bytes, in each of 12 layers."),
        {
            f"{size // 2:,} bytes": "Keys and values are both kept.",
            f"{size // 12:,} bytes": "That is one layer's.",
            f"{size * 12:,} bytes": "768 is the width of all 12 heads together.",
        },
    )


def grouped_heads() -> Question:
    few, many = (2 * kv_heads * 128 * 2 for kv_heads in (8, 32))
    return Question(
        "A layer has 32 query heads of width 128, and 8 KV heads. How large is its cache, compared with 32 KV heads?",
        (
            "a quarter",
            f"{few:,} bytes a token in bfloat16, in place of {many:,}: four query heads share a KV head.",
        ),
        {
            "as large": f"Only keys and values are cached: {few:,} bytes a token, in place of {many:,}.",
            "a half": f"{few:,} / {many:,} = {few / many}.",
        },
    )


def why_cache_works() -> Question:
    return Question(
        "Why may keys and values of earlier tokens be kept, while a text grows?",
        (
            "with a causal mask, they do not depend on later tokens",
            "So they stay what they were when their token was new.",
        ),
        {
            "because the weights do not change": "Each new token has weights of its own over all keys; the keys stay.",
            "because attention ignores order": "It is the mask that makes earlier vectors independent of later ones; in BERT, which has none, all vectors change with each token.",
        },
    )


def reach_of_a_window() -> Question:
    row = computed()["window"][5]
    return Question(
        "masks.SlidingWindow(3): which of six keys may the last token attend to?",
        (listed(row, 0), "Its own position and the two before it: three keys in all."),
        {
            listed([0, 0, 1, 1, 1, 1], 0): "The window counts the token itself: three keys, not four.",
            listed(np.ones(6), 0): "That is the causal mask without a window.",
        },
    )


def gradient_of_a_masked_token() -> Question:
    sizes = abs(computed()["gradient of token 1"]).sum(-1)
    return Question(
        "The output of token 1 is differentiated with respect to all four tokens. Where is the gradient 0?",
        ("at tokens 2 and 3", f"The gradients' sizes are {listed(sizes, 3)}: the mask lets nothing through."),
        {
            "nowhere": f"They are {listed(sizes, 3)}; anything but 0 at later tokens would be a leak.",
            "at token 0": f"Token 1 attends to token 0: {listed(sizes, 3)}.",
        },
    )


QUESTIONS = (
    shape_of_a_batch,
    dropout_under_vmap,
    width_of_stacked_heads,
    width_of_parallel_heads,
    view_before_transpose,
    order_of_joining,
    what_the_output_projection_does,
    more_heads_more_weights,
    size_of_gpt2,
    cost_of_length,
    memory_of_weights,
    size_of_a_cache,
    grouped_heads,
    why_cache_works,
    reach_of_a_window,
    gradient_of_a_masked_token,
)
