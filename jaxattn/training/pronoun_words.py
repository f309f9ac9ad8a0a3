"""The words of the language of pronouns: their ids, their spelling, and a tokenizer that knows them."""

from collections.abc import Iterable
from typing import Any

from jaxattn.extras import require
from jaxattn.training.tokenizer import END

PRONOUNS = ("him", "her")
# The first half are him, the second half her.
NOUNS = (
    *("dog", "fox", "bull", "ram", "stallion", "rooster", "lion", "tiger", "drake", "gander"),
    *("cat", "vixen", "cow", "ewe", "mare", "hen", "lioness", "tigress", "duck", "goose"),
)
# What each of them may be doing: "which bit him barking".
SOUNDS = (
    *("barking", "yapping", "mooing", "bleating", "neighing", "crowing", "roaring", "growling", "quacking", "honking"),
    *("purring", "yapping", "mooing", "bleating", "neighing", "clucking", "roaring", "growling", "quacking", "honking"),
)
ADJECTIVES = ("old", "young", "quick", "slow", "small", "brown", "clever", "hungry")
VERBS = ("chased", "met", "followed", "passed", "fled", "loved", "feared", "trusted")  # before another animal
BEFORE_PRONOUN = ("bit", "heard", "saw", "watched", "caught", "found", "left", "spotted", "noticed", "surprised")

WORDS = tuple(
    dict.fromkeys(
        (END, *PRONOUNS, "the", "which", "near", ",", ".", *NOUNS, *SOUNDS, *ADJECTIVES, *VERBS, *BEFORE_PRONOUN)
    )
)


def vocabulary() -> dict[str, int]:
    """Return every word with its id; the end of a sentence is 0.

    Example:
        >>> from jaxattn.training.pronoun_words import END, vocabulary
        >>> vocabulary()[END], len(vocabulary())
        (0, 66)
    """
    return {word: number for number, word in enumerate(WORDS)}


def spell(tokens: Iterable[int]) -> str:
    """Write token ids as words, up to the end of the sentence.

    Example:
        >>> from jaxattn.training.pronoun_words import END, spell, vocabulary
        >>> spell(vocabulary()[word] for word in ("the", "dog", END, END))
        'the dog'
    """
    return " ".join(WORDS[token] for token in tokens).partition(END)[0].rstrip()


def make_tokenizer() -> Any:
    """Return a `tokenizers.Tokenizer` of one token a word, to be saved beside a model as `tokenizer.json`.

    It has no token for unknown words: encoding one is an error.

    Raises:
        ImportError: tokenizers is not installed.

    Example:
        >>> from jaxattn.training.pronoun_words import make_tokenizer
        >>> tokenizer = make_tokenizer()
        >>> tokenizer.decode(tokenizer.encode("Near the cow, the dog").ids)
        'near the cow , the dog'
    """
    tokenizers = require("tokenizers", extra="train")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary()))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([END])
    return tokenizer
