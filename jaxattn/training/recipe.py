"""Recipes: how the model is built, how it is optimized, and which sizes suit that."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax
from jax.sharding import Mesh

from jaxattn.training.optimizer import adamw, cosine_schedule, linear_schedule, muon


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe.

    Args:
        model: fields of `GPTConfig` in which the model differs from GPT-2.
        schedule: makes the learning rates from the number of steps and the highest one.
        optimizer: makes the optimizer from the learning rates, for a mesh.
        options: fields of `TrainConfig` in which the sizes differ from the default recipe's.
    """

    model: Mapping[str, Any]
    schedule: Callable[[int, float], optax.Schedule]
    optimizer: Callable[[optax.Schedule, Mesh], optax.GradientTransformation]
    options: Mapping[str, Any]


RECIPES = {
    # What learned most of what was tried; the README says what each part brought.
    "fast": Recipe(
        model={
            "rotary": True,
            "normalize_heads": True,
            "rms_norm": True,
            "squared_relu": True,
            "use_bias": False,
        },
        schedule=linear_schedule,
        optimizer=muon,
        options={},
    ),
    "gpt2": Recipe(
        model={},
        schedule=cosine_schedule,
        optimizer=adamw,
        options={"learning_rate": 3e-3, "steps": 1000},
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        ValueError: there is no recipe of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"--recipe is {name!r}, but must be {' or '.join(RECIPES)}")
    return RECIPES[name]
