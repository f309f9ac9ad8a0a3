"""The table in `models/README.md`: the fields that it names for a model are those that a configuration sets."""

import ast
import re
from pathlib import Path

import pytest

import jaxattn
from jaxattn import AttentionLayer, LatentAttention
from jaxattn.models.convert.transformers import recipe_of

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "num_hidden_layers": 6}
WINDOWS = HEADS | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 4096}
LATENT = {"kv_lora_rank": 6, "q_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
CONFIGS = {
    "GPT-2": ("gpt2", {}, None),
    "BERT": ("bert", {}, None),
    "cross-attention of GPT-2": ("gpt2", {"add_cross_attention": True}, "cross"),
    "cross-attention of BERT": ("bert", {"add_cross_attention": True, "is_decoder": True}, "cross"),
    "T5 encoder": ("t5", {}, "encoder"),
    "T5 decoder": ("t5", {}, "decoder"),
    "T5 cross-attention": ("t5", {}, "cross"),
    "Llama": ("llama", HEADS | {"rope_parameters": LLAMA3}, None),
    "Mistral": ("mistral", HEADS | {"sliding_window": 8}, None),
    "Qwen2": ("qwen2", WINDOWS, None),
    "Qwen3": ("qwen3", WINDOWS, None),
    "Gemma 2": ("gemma2", HEADS | {"attn_logit_softcapping": 50.0}, None),
    "Gemma 3": ("gemma3_text", HEADS, None),
    "gpt-oss": ("gpt_oss", HEADS | {"rope_parameters": YARN}, None),
    "DeepSeek-V2, V3": ("deepseek_v3", HEADS | LATENT | {"num_key_value_heads": 4, "head_dim": None}, None),
}
SIZES = {"num_heads", "features", "head_width", "dropout_rate", "cache_length", "norm_epsilon"}


def table():
    """The fields that each row names, `{model: {field: text}}`."""
    text, rows = (Path(jaxattn.__file__).parent / "models" / "README.md").read_text(encoding="utf-8"), {}
    for model, described in re.findall(r"^\| ([^|]+) \| (.*`.*) \|$", text, re.MULTILINE):
        fields = dict(rows["Llama"]) if described.startswith("Llama's") else {}
        for code in re.findall(r"`([^`]+)`", described.replace("`context=`", "")):
            call = ast.parse(code if code.startswith("LatentAttention") else f"f({code})", mode="eval").body
            fields |= {name.id: None for name in call.args if isinstance(name, ast.Name)}
            fields |= {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        rows[model] = fields
    return rows


@pytest.mark.parametrize("model", CONFIGS)
def test_a_row_names_the_fields_that_make_the_model_and_no_others(model):
    kind, config, part = CONFIGS[model]
    given = table()[model]
    recipes = [recipe_of({"model_type": kind, **config}, layer, part) for layer in range(6)]
    set_by_config = {}
    for recipe in recipes:
        layer = {LatentAttention: LatentAttention, AttentionLayer: AttentionLayer}[recipe.module]
        for name, value in recipe.fields.items():
            width = recipe.fields.get("head_width") or recipe.fields["features"] // recipe.fields["num_heads"]
            width += recipe.fields.get("rotary_width", 0)
            is_default = value == getattr(layer, name, None) or (name == "scale" and value == width**-0.5)
            if name not in SIZES and not is_default:
                set_by_config.setdefault(name, []).append(value)
    assert set(given) == set(set_by_config)
    for name, text in given.items():
        for value in set_by_config[name]:
            if text in (None, "..."):
                continue
            if "(" not in text:
                assert value == ast.literal_eval(text), name
                continue
            assert type(value).__name__ == text.partition("(")[0], name
            for keyword in ast.parse(text, mode="eval").body.keywords:
                if isinstance(keyword.value, ast.Call) and model in ("Llama", "gpt-oss"):
                    assert type(getattr(value, keyword.arg)).__name__ == keyword.value.func.id, name
                elif isinstance(keyword.value, ast.Constant):
                    assert getattr(value, keyword.arg) == keyword.value.value, name


def test_every_row_is_checked():
    assert set(table()) == set(CONFIGS)
