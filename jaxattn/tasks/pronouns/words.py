"""The vocabulary of the pronoun sentences, and its tokenizer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxattn.tasks.made_up import word_tokenizer
from jaxattn.training.tokenizer import EOS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PRONOUNS = ("him", "her")
# The first half is "him", the second half "her".
NOUNS = (
    *("dog", "fox", "bull", "ram", "stallion", "rooster", "lion", "tiger", "drake", "gander"),
    *("cat", "vixen", "cow", "ewe", "mare", "hen", "lioness", "tigress", "duck", "goose"),
)
# What each of them was doing, in the order of NOUNS: "which bit him barking".
SOUNDS = (
    *("barking", "yapping", "mooing", "bleating", "neighing", "crowing", "roaring", "growling", "quacking", "honking"),
    *("purring", "yapping", "mooing", "bleating", "neighing", "clucking", "roaring", "growling", "quacking", "honking"),
)
ADJECTIVES = ("old", "young", "quick", "slow", "small", "brown", "clever", "hungry")
VERBS = ("chased", "met", "followed", "passed", "fled", "loved", "feared", "trusted")  # before another animal
BEFORE_PRONOUN = ("bit", "heard", "saw", "watched", "caught", "found", "left", "spotted", "noticed", "surprised")

WORDS = tuple(
    dict.fromkeys(
        (EOS, *PRONOUNS, "the", "which", "near", ",", ".", *NOUNS, *SOUNDS, *ADJECTIVES, *VERBS, *BEFORE_PRONOUN)
    )
)


def vocabulary() -> dict[str, int]:
    """Return every word with its id; EOS is 0.

    Example:
        >>> from jaxattn.tasks.pronouns.words import EOS, vocabulary
        >>> vocabulary()[EOS], len(vocabulary())
        (0, 66)
    """
    return {word: number for number, word in enumerate(WORDS)}


def spell(tokens: Iterable[int]) -> str:
    """Turn token ids into words, up to the end of the sentence.

    Example:
        >>> from jaxattn.tasks.pronouns.words import EOS, spell, vocabulary
        >>> spell(vocabulary()[word] for word in ("the", "dog", EOS, EOS))
        'the dog'
    """
    return " ".join(WORDS[token] for token in tokens).partition(EOS)[0].rstrip()


def make_tokenizer() -> "Tokenizer":
    """Return the `tokenizers.Tokenizer` of these words.

    Raises:
        ImportError: tokenizers is not installed.
    """
    return word_tokenizer(WORDS)
