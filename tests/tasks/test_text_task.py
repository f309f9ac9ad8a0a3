from jaxattn.tasks.text import standard_library
from jaxattn.training.text import make_corpus


def test_the_default_text_is_a_few_megabytes_of_python():
    corpus = make_corpus(standard_library(), context_length=8)
    assert 1e6 < len(corpus.train) + len(corpus.held_out) < 1e7
    assert b"import" in bytes(corpus.train.read(0, 10**6)[0].astype("uint8"))
