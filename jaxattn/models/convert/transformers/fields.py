"""Fields of a configuration, taken one by one, so that none is ignored unseen."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Value: TypeAlias = Any  # of a JSON file: a number, text, a list or a dictionary

# They say nothing about attention: names, tokens, files, outputs, initialization, and layers other than attention.
IRRELEVANT = frozenset(
    [
        "model_type",
        "architectures",
        "name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "attn_implementation",
        "use_cache",
        "cache_implementation",
        "initializer_range",
        "initializer_factor",
        "vocab_size",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "task_specific_params",
        "intermediate_size",
        "hidden_act",
        "hidden_activation",
        "mlp_bias",
        "final_logit_softcapping",
        "pretraining_tp",
        "num_hidden_layers",
        "max_position_embeddings",
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
    ]
)


class Fields:
    """The fields of a configuration, taken one by one, until none is left that could say something about attention.

    Args:
        owner: what messages call the configuration, "the configuration of a llama".
        fields: its fields by name.
    """

    def __init__(self, owner: str, fields: Mapping[str, Any]) -> None:
        self.owner = owner
        self._fields = dict(fields)
        self._taken: set[str] = set()

    def take(self, name: str, default: Value = None) -> Value:
        """Return a field; None is the default, as in transformers."""
        self._taken.add(name)
        value = self._fields.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """Return a field that is a positive integer.

        Raises:
            ValueError: it is missing, or something else.
        """
        value = self.take(name, default)
        if value is None:
            raise ValueError(f"{self.owner} has no field {name!r}, a size of its attention: write {name}=...")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.owner} has {name}={value!r}, but must have an integer of at least 1")
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Check that a field, if it is there, has one of the allowed values.

        Raises:
            ValueError: it has another.
        """
        value = self.take(name)
        if value is not None and value not in allowed:
            raise ValueError(
                f"{self.owner} has {name}={value!r}, which the layer does not compute: supported is "
                f"{' or '.join(map(repr, allowed)) or None}"
            )

    def check_cross(self) -> None:
        """Check that a model has cross-attention.

        Raises:
            ValueError: it has none.
        """
        if not self.take("add_cross_attention", False):
            raise ValueError(f"part='cross' needs cross-attention, but {self.owner} has add_cross_attention=False")

    def ignore(self, names: str) -> None:
        """Take fields that say nothing about the layer, separated by spaces."""
        self._taken |= set(names.split())

    def finish(self) -> None:
        """Check that no field is left, except those that are off (None or False) and those that are irrelevant.

        Raises:
            ValueError: one is left.
        """
        for name in sorted(set(self._fields) - self._taken - IRRELEVANT):
            value = self._fields[name]
            if value is None or value is False or name.startswith("_"):
                continue
            raise ValueError(
                f"{self.owner} has {name}={value!r}, which is not supported: if it does not change attention, leave "
                f"{name} out of the configuration"
            )


def as_mapping(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration, an object of transformers or a dictionary; of several, those for text.

    Raises:
        TypeError: it is something else.
    """
    fields = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"config is a {type(config).__name__}, but must be a configuration of transformers or a dictionary: write "
            "json.loads(Path('config.json').read_text())"
        )
    text = fields.get("text_config")
    return {"model_type": f"{fields.get('model_type')}_text", **text} if isinstance(text, Mapping) else dict(fields)
