import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.tasks.pronouns.report import bigram_accuracy, format_report, report_pronouns
from jaxattn.tasks.pronouns.sentences import LONGEST, make_sentences
from jaxattn.tasks.pronouns.words import EOS, NOUNS, PRONOUNS, WORDS, make_tokenizer, spell, vocabulary

TRAIN, HELD_OUT = (make_sentences(1, 5000, held_out=held_out) for held_out in (False, True))
GENDER = {noun: PRONOUNS[number >= len(NOUNS) // 2] for number, noun in enumerate(NOUNS)}


def words_at(sentences, positions):
    return [WORDS[token] for token in np.take_along_axis(sentences.tokens, positions[:, None], axis=1)[:, 0]]


@pytest.mark.parametrize("sentences", [TRAIN, HELD_OUT], ids=["train", "held out"])
def test_the_pronoun_fits_its_noun_and_both_positions_are_right(sentences):
    nouns, pronouns = words_at(sentences, sentences.nouns), words_at(sentences, sentences.pronouns)
    assert [GENDER[noun] for noun in nouns] == pronouns
    for tokens, length, place in zip(sentences.tokens, sentences.lengths, sentences.pronouns, strict=True):
        words = [WORDS[token] for token in tokens]
        assert words[length - 1 :] == [EOS] * (LONGEST - length + 1)
        assert [n for n, word in enumerate(words) if word in PRONOUNS] == [place]
        assert words[length - 2] == "."


def test_sentences_follow_from_the_seed():
    same, other = make_sentences(1, 5000, held_out=False), make_sentences(2, 5000, held_out=False)
    np.testing.assert_array_equal(TRAIN.tokens, same.tokens)
    assert (TRAIN.tokens != other.tokens).any()
    assert len(np.unique(TRAIN.tokens, axis=0)) > 4900


def test_held_out_pairs_of_noun_and_verb_are_never_trained_on_but_every_word_is():
    def pairs(sentences):
        return set(zip(words_at(sentences, sentences.nouns), words_at(sentences, sentences.pronouns - 1), strict=True))

    assert not pairs(TRAIN) & pairs(HELD_OUT)
    assert len(pairs(HELD_OUT)) * 4 == len(pairs(TRAIN))
    for side in (0, 1):
        assert {pair[side] for pair in pairs(HELD_OUT)} == {pair[side] for pair in pairs(TRAIN)}


def test_neither_a_word_nor_a_position_gives_the_answer_away():
    assert bigram_accuracy(HELD_OUT, TRAIN) == pytest.approx(0.5, abs=0.03)
    right = words_at(HELD_OUT, HELD_OUT.pronouns)
    for place in (0, 1, -2, -1):
        guesses = []
        for tokens in HELD_OUT.tokens:
            genders = [GENDER[WORDS[token]] for token in tokens if WORDS[token] in GENDER]
            guesses.append(genders[max(min(place, len(genders) - 1), -len(genders))])
        assert 0.28 < np.mean([a == b for a, b in zip(guesses, right, strict=True)]) < 0.72


def test_the_tokenizer_encodes_spelled_sentences():
    tokenizer = make_tokenizer()
    for tokens, length in zip(TRAIN.tokens[:50], TRAIN.lengths, strict=False):
        assert tokenizer.encode(spell(tokens)).ids == list(tokens[: length - 1])


@pytest.mark.slow
def test_the_report_equals_that_of_one_sentence_at_a_time():
    model = GPT(GPTConfig(len(vocabulary()), LONGEST, 2, 3, 12))
    params = model.init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"]
    sentences = make_sentences(3, 300, held_out=True)  # more than one batch
    report = report_pronouns(model, params, sentences, TRAIN)
    ids, right, best, attention = [vocabulary()[word] for word in PRONOUNS], [], [], []
    apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens, mutable=["intermediates"]))
    for tokens, _, pronoun, noun in zip(*sentences, strict=True):
        logits, collected = apply(tokens)
        logits = np.asarray(logits[pronoun - 1])
        right.append(ids[int(logits[ids[1]] > logits[ids[0]])] == tokens[pronoun])
        best.append(int(logits.argmax()) == tokens[pronoun])
        blocks = [collected["intermediates"][f"block_{n}"]["attention"]["weights"][0] for n in (0, 1)]
        attention.append([[weights[:, pronoun - back, noun] for weights in blocks] for back in (0, 1)])
    assert report.accuracy == pytest.approx(np.mean(right))
    assert report.accuracy_of_all == pytest.approx(np.mean(best))
    at_pronoun, before = np.mean(attention, axis=0)
    np.testing.assert_allclose(report.attention, at_pronoun, atol=1e-5)
    np.testing.assert_allclose(report.attention_before, before, atol=1e-5)
    layer, head = report.best_head
    assert report.attention[layer, head] == report.attention.max()
    assert f"layer {layer}, head {head} attends to the noun most, but has not found it" in format_report(report)


def test_a_model_with_too_short_a_context_is_refused():
    model = GPT(GPTConfig(len(vocabulary()), 4, 1, 1, 4))
    with pytest.raises(ValueError, match="context_length=4"):
        report_pronouns(model, {}, HELD_OUT, TRAIN)
