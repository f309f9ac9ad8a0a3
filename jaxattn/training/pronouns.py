"""A small language in which every sentence asks one question: whom does the pronoun mean?

After the sentence of the chapter, "the old dog chased the quick fox which bit him": "him" is the dog, however many
words and other animals stand between.
"""

from typing import NamedTuple

import numpy as np

from jaxattn.training.pronoun_words import ADJECTIVES, BEFORE_PRONOUN, NOUNS, PRONOUNS, SOUNDS, VERBS, WORDS
from jaxattn.training.tokenizer import END

LONGEST = 27  # words in a sentence, its separator among them
TRAINED_ON, ASKED = 100_000, 2000  # sentences of a run
DOING = 0.75  # share of the sentences that say what the animal was doing
_KINDS = len(NOUNS) // 2  # of either gender


class Sentences(NamedTuple):
    """Sentences as token ids, and where in each the question and its answer stand; arrays of int32.

    Args:
        tokens: `(N, LONGEST)`, each sentence ended by the separator and filled up with it.
        lengths: `(N,)`, the words of each sentence with one separator.
        pronouns: `(N,)`, the position of the pronoun.
        nouns: `(N,)`, the position of the noun that it means.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    pronouns: np.ndarray
    nouns: np.ndarray


def make_sentences(seed: int, number: int, *, held_out: bool) -> Sentences:
    """Draw sentences that follow from the arguments alone.

    Half of them open with another animal ("near the cow ,"). Then one of three frames: the pronoun means the subject
    ("the dog chased the fox which bit him"), the subject after a relative clause of its own, in either order ("the dog
    which met the cow chased the fox which bit him", "the dog which the cow met …"), or the animal in the relative
    clause ("the fox which met the dog bit him"). Every noun has up to two adjectives. An animal that grammar excludes
    (the one that bites) has either gender by chance, and one that grammar would allow has the other gender. So there
    is always just one answer, and neither the place of a noun nor the word before the pronoun gives it.

    Args:
        seed: same seed, same sentences.
        number: how many sentences, N.
        held_out: whether the noun and the verb before its pronoun are a pair that is kept from training (of every noun
            and every verb, a fifth of the pairs), or one of the others.

    Returns:
        N sentences.

    Raises:
        ValueError: `number` is below 1, or `seed` below 0.

    Example:
        >>> from jaxattn.training.pronoun_words import spell
        >>> from jaxattn.training.pronouns import make_sentences
        >>> spell(make_sentences(2, 1, held_out=False).tokens[0])
        'near the quick drake , the lioness feared the young slow dog which noticed her .'
    """
    if number < 1 or seed < 0:
        raise ValueError(
            f"number={number} must be at least 1 and seed={seed} at least 0: "
            f"write make_sentences(0, 1000, held_out={held_out}), say"
        )
    random = np.random.default_rng((seed, held_out))
    pairs = np.argwhere(np.fromfunction(_is_held_out, (len(NOUNS), len(BEFORE_PRONOUN)), dtype=int) == held_out)
    meant, verb = pairs[random.integers(len(pairs), size=number)].T  # (N,) each
    opening, inner = (_another(random, meant, 1 - meant // _KINDS) for _ in range(2))
    biting = _another(random, meant, random.integers(2, size=number))

    opens, verb_first = random.integers(2, size=(2, number)) == 1
    frame = random.integers(3, size=number)
    has_clause, means_inner, has_object = frame > 0, frame == 2, frame < 2
    # In the other order the one that is bitten would stand as near to its pronoun as elsewhere the one that bites.
    verb_first = verb_first | means_inner
    subject, inner = np.where(means_inner, biting, meant), np.where(means_inner, meant, inner)
    relation = _draw(random, VERBS, number)
    before = [
        *_only(opens, [_ids("near"), *_animal(random, opening), _ids(",")]),
        *_animal(random, subject),
    ]
    clause = [*_only(verb_first, [relation]), *_animal(random, inner)]
    after = [
        *_only(has_clause & ~verb_first, [relation]),
        *_only(has_object, [_draw(random, VERBS, number), *_animal(random, biting), _ids("which")]),
        _ids(*BEFORE_PRONOUN)[verb],
    ]
    end = [
        _ids(*PRONOUNS)[meant // _KINDS],
        *_only(random.random(number) < DOING, [_ids(*SOUNDS)[meant]]),
        _ids("."),
        _ids(END),
    ]
    words = [*before, *_only(has_clause, [_ids("which"), *clause]), *after, *end]
    noun = np.where(means_inner, len(before) + len(clause), len(before) - 1)
    return _close_up(words, noun, len(words) - len(end))


def trained_on(seed: int) -> Sentences:
    """Return the sentences that a run learns from."""
    return make_sentences(seed, TRAINED_ON, held_out=False)


def held_out(seed: int) -> Sentences:
    """Return the sentences that a run is asked."""
    return make_sentences(seed, ASKED, held_out=True)


def _is_held_out(noun: np.ndarray, verb: np.ndarray) -> np.ndarray:
    """Choose a fifth of the pairs, of each noun and of each verb, and for each verb as many of either gender."""
    return (noun % _KINDS + 2 * (noun // _KINDS) + verb) % 5 == 0


def _another(random: np.random.Generator, meant: np.ndarray, gender: np.ndarray) -> np.ndarray:
    """Draw animals `(N,)` of the given genders, none of them the one that is meant."""
    same = gender == meant // _KINDS
    steps = random.integers(_KINDS - same) + same
    return gender * _KINDS + (meant + steps) % _KINDS


def _draw(random: np.random.Generator, words: tuple[str, ...], number: int) -> np.ndarray:
    return _ids(*words)[random.integers(len(words), size=number)]


def _ids(*words: str) -> np.ndarray:
    return np.array([WORDS.index(word) for word in words], np.int32)


def _animal(random: np.random.Generator, noun: np.ndarray) -> list[np.ndarray]:
    """Put "the" and up to two adjectives before a noun."""
    count = random.integers(3, size=len(noun))
    first, second = random.permuted(np.tile(_ids(*ADJECTIVES), (len(noun), 1)), axis=1)[:, :2].T
    return [_ids("the"), *_only(count > 0, [first]), *_only(count > 1, [second]), _ids(*NOUNS)[noun]]


def _only(where: np.ndarray, words: list[np.ndarray]) -> list[np.ndarray]:
    """Leave words out of the other sentences: -1 stands for no word."""
    return [np.where(where, word, -1) for word in words]


def _close_up(words: list[np.ndarray], noun: np.ndarray, pronoun: int) -> Sentences:
    """Move the words that are there to the left, `(N, LONGEST)`, and follow noun and pronoun to their new places."""
    slots = np.stack(np.broadcast_arrays(*words), axis=1)  # (N, slots)
    there = slots >= 0
    lengths = there.sum(axis=1, dtype=np.int32)
    order = np.argsort(~there, axis=1, kind="stable")[:, :LONGEST]
    tokens = np.maximum(np.take_along_axis(slots, order, axis=1), _ids(END))
    places = np.cumsum(there, axis=1, dtype=np.int32) - 1
    return Sentences(tokens, lengths, places[:, pronoun], places[np.arange(len(noun)), noun])
