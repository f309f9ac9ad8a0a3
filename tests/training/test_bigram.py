import itertools

import numpy as np
import pytest
from text_files import whole_text, write

from jaxattn.training.batches import Batch
from jaxattn.training.bigram import bigram_loss


@pytest.mark.parametrize("packed", [False, True])
def test_the_bigram_loss_follows_from_counted_pairs(tmp_path, packed):
    text, scored = b"abababac", b"abac"
    pairs = list(itertools.pairwise(text))
    documents = np.array([[1, 1, 2, 2]]) if packed else None
    losses = [
        -np.log((pairs.count(pair) + 1) / (sum(p == pair[0] for p, _ in pairs) + 256))
        for pair in itertools.pairwise(scored)
    ]
    expected = (losses[0] + losses[2]) / 2 if packed else np.mean(losses)
    batch = Batch(np.frombuffer(scored, np.uint8)[None], documents)
    assert bigram_loss(whole_text(write(tmp_path / "text", text)), batch, 256) == pytest.approx(expected)


def test_a_large_vocabulary_has_no_bigram_loss(tmp_path):
    assert bigram_loss(whole_text(write(tmp_path / "text", b"abc")), Batch(np.zeros((1, 3), int)), 50257) is None
