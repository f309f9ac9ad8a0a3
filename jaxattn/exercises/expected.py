"""Every function that learners fill in, by its name, and what is checked of it."""

from jaxattn.exercises import cached_keys, dropout_and_batches, many_heads, modules, one_head
from jaxattn.exercises.checking import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for module in (one_head, dropout_and_batches, many_heads, cached_keys, modules)
    for exercise in (getattr(module, name) for name in module.__all__)
}
