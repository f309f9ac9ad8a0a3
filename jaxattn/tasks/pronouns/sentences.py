"""Sentences of a small language in which every pronoun refers to exactly one noun.

The model is the chapter's sentence, "the old dog chased the quick fox which bit him": "him" is the dog, however many
words and other animals come in between.
"""

from typing import NamedTuple

import numpy as np

from jaxattn.tasks.pronouns.words import ADJECTIVES, BEFORE_PRONOUN, NOUNS, PRONOUNS, SOUNDS, VERBS, WORDS
from jaxattn.training.tokenizer import EOS

LONGEST = 27  # the most words in a sentence, EOS included
TRAINING, HELD_OUT = 100_000, 2000  # sentences of a run
WITH_SOUND = 0.75  # fraction of the sentences that end with what the animal was doing, as "barking"
_ANIMALS = len(NOUNS) // 2  # of each gender


class Sentences(NamedTuple):
    """Sentences as token ids, and the positions of the pronoun and its noun in each; arrays of int32.

    Args:
        tokens: `(N, LONGEST)`, each sentence ended by EOS and padded with it.
        lengths: `(N,)`, the words of each sentence with one EOS.
        pronouns: `(N,)`, the position of the pronoun.
        nouns: `(N,)`, the position of the noun that it refers to.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    pronouns: np.ndarray
    nouns: np.ndarray


def make_sentences(seed: int, number: int, *, held_out: bool) -> Sentences:
    """Draw sentences; the same arguments give the same sentences.

    Half of them open with another animal ("near the cow ,"). Then comes one of three frames. The pronoun refers to the
    subject ("the dog chased the fox which bit him"), to a subject with a relative clause, in either order ("the dog
    which met the cow chased the fox which bit him", "the dog which the cow met …"), or to the animal in the relative
    clause ("the fox which met the dog bit him"). Every noun has up to two adjectives. An animal that grammar excludes
    (the one that bites) has a random gender, and one that grammar would allow has the opposite gender. So every
    sentence has exactly one answer, and neither the position of a noun nor the word before the pronoun gives it away.

    Args:
        seed: chooses the sentences.
        number: how many sentences, N.
        held_out: whether the noun and the verb before its pronoun are one of the pairs that are kept out of training
            (a fifth of the pairs of every noun and of every verb), or one of the others.

    Raises:
        ValueError: `number` is below 1, or `seed` below 0.

    Example:
        >>> from jaxattn.tasks.pronouns.words import spell
        >>> from jaxattn.tasks.pronouns.sentences import make_sentences
        >>> spell(make_sentences(2, 1, held_out=False).tokens[0])
        'near the quick drake , the lioness feared the young slow dog which noticed her .'
    """
    if number < 1 or seed < 0:
        raise ValueError(
            f"number={number} must be at least 1 and seed={seed} at least 0: "
            f"write make_sentences(0, 1000, held_out={held_out}), for example"
        )
    random = np.random.default_rng((seed, held_out))
    pairs = np.argwhere(np.fromfunction(_is_held_out, (len(NOUNS), len(BEFORE_PRONOUN)), dtype=int) == held_out)
    referent, verb = pairs[random.integers(len(pairs), size=number)].T  # (N,) each
    opening, inner = (_other_animal(random, referent, 1 - referent // _ANIMALS) for _ in range(2))
    biting = _other_animal(random, referent, random.integers(2, size=number))

    opens, verb_first = random.integers(2, size=(2, number)) == 1
    frame = random.integers(3, size=number)
    has_clause, refers_to_inner, has_object = frame > 0, frame == 2, frame < 2
    # With the verb last, the animal that is bitten would be as near to the pronoun as the one that bites elsewhere.
    verb_first = verb_first | refers_to_inner
    subject, inner = np.where(refers_to_inner, biting, referent), np.where(refers_to_inner, referent, inner)
    relation = _draw(random, VERBS, number)
    before = [
        *_where(opens, [_ids("near"), *_animal(random, opening), _ids(",")]),
        *_animal(random, subject),
    ]
    clause = [*_where(verb_first, [relation]), *_animal(random, inner)]
    after = [
        *_where(has_clause & ~verb_first, [relation]),
        *_where(has_object, [_draw(random, VERBS, number), *_animal(random, biting), _ids("which")]),
        _ids(*BEFORE_PRONOUN)[verb],
    ]
    end = [
        _ids(*PRONOUNS)[referent // _ANIMALS],
        *_where(random.random(number) < WITH_SOUND, [_ids(*SOUNDS)[referent]]),
        _ids("."),
        _ids(EOS),
    ]
    words = [*before, *_where(has_clause, [_ids("which"), *clause]), *after, *end]
    noun = np.where(refers_to_inner, len(before) + len(clause), len(before) - 1)
    return _close_gaps(words, noun, len(words) - len(end))


def training_sentences(seed: int) -> Sentences:
    """Return the sentences that a run trains on."""
    return make_sentences(seed, TRAINING, held_out=False)


def held_out_sentences(seed: int) -> Sentences:
    """Return the sentences that a run is tested on."""
    return make_sentences(seed, HELD_OUT, held_out=True)


def _is_held_out(noun: np.ndarray, verb: np.ndarray) -> np.ndarray:
    """Choose a fifth of the pairs of each noun and of each verb; of each verb, the same number for both genders."""
    return (noun % _ANIMALS + 2 * (noun // _ANIMALS) + verb) % 5 == 0


def _other_animal(random: np.random.Generator, referent: np.ndarray, gender: np.ndarray) -> np.ndarray:
    """Draw animals `(N,)` of the given genders, never the referent itself."""
    same = gender == referent // _ANIMALS
    steps = random.integers(_ANIMALS - same) + same
    return gender * _ANIMALS + (referent + steps) % _ANIMALS


def _draw(random: np.random.Generator, words: tuple[str, ...], number: int) -> np.ndarray:
    return _ids(*words)[random.integers(len(words), size=number)]


def _ids(*words: str) -> np.ndarray:
    return np.array([WORDS.index(word) for word in words], np.int32)


def _animal(random: np.random.Generator, noun: np.ndarray) -> list[np.ndarray]:
    """Put "the" and up to two adjectives in front of a noun."""
    count = random.integers(3, size=len(noun))
    first, second = random.permuted(np.tile(_ids(*ADJECTIVES), (len(noun), 1)), axis=1)[:, :2].T
    return [_ids("the"), *_where(count > 0, [first]), *_where(count > 1, [second]), _ids(*NOUNS)[noun]]


def _where(condition: np.ndarray, words: list[np.ndarray]) -> list[np.ndarray]:
    """Keep the words in some sentences only; -1 in the others stands for no word."""
    return [np.where(condition, word, -1) for word in words]


def _close_gaps(words: list[np.ndarray], noun: np.ndarray, pronoun: int) -> Sentences:
    """Remove the gaps (-1) between words, and find the new positions of noun and pronoun."""
    slots = np.stack(np.broadcast_arrays(*words), axis=1)  # (N, slots)
    is_word = slots >= 0
    lengths = is_word.sum(axis=1, dtype=np.int32)
    order = np.argsort(~is_word, axis=1, kind="stable")[:, :LONGEST]  # (N, LONGEST)
    tokens = np.maximum(np.take_along_axis(slots, order, axis=1), _ids(EOS))
    positions = np.cumsum(is_word, axis=1, dtype=np.int32) - 1
    return Sentences(tokens, lengths, positions[:, pronoun], positions[np.arange(len(noun)), noun])
