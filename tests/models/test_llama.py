"""Whole models of the Llama family, from directories that `save_pretrained` of transformers wrote."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import generate, load_llama, stream
from jaxattn.models import command

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
CASES = {
    "llama": ("Llama", {**SIZES, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**SIZES, "head_dim": 12, "sliding_window": 9}),
    "qwen2": ("Qwen2", {**SIZES, **WINDOWS}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 12, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def peers():
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    return torch, pytest.importorskip("transformers", reason="compares with transformers: install the extra peers")


def saved(peers, case, directory, **options):
    """Save a model with random weights; return it."""
    torch, transformers = peers
    kind, fields = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**fields, attn_implementation="eager", eos_token_id=None)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(directory, **options)
    return model


def their_tokens(torch, model, prompts, number):
    """Continue prompts of different lengths, padded on the left as transformers wants it."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": number, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(padded, attention_mask=real, **options)[:, longest:].numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_fifty_greedy_tokens_of_a_padded_batch_equal_those_of_transformers(peers, case, tmp_path):
    torch = peers[0]
    theirs = saved(peers, case, tmp_path)
    model, params = load_llama(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 61, (3, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model.apply({"params": params}, jnp.asarray(tokens)), expected, atol=1e-4)

    lengths = np.array([12, 5, 9])
    prompts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    actual = generate(model, params, tokens[:, :12], 50, temperature=0, lengths=lengths)
    np.testing.assert_array_equal(actual, their_tokens(torch, theirs, prompts, 50))


def test_a_single_prompt_streams_the_same_tokens(peers, tmp_path):
    theirs = saved(peers, "llama", tmp_path)
    model, params = load_llama(tmp_path, context_length=64)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    tokens = [int(token) for token in stream(model, params, jnp.asarray(prompt), 50, temperature=0)]
    assert tokens == their_tokens(peers[0], theirs, [prompt], 50)[0].tolist()


def test_sharded_files_and_files_of_the_bare_model_hold_the_same_parameters(peers, tmp_path):
    theirs = saved(peers, "llama-tied", tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    theirs.model.save_pretrained(tmp_path / "bare")
    tokens = jnp.arange(7)
    (model, params), *others = (load_llama(tmp_path / name) for name in ("whole", "shards", "bare"))
    for _, same in others:
        np.testing.assert_array_equal(model.apply({"params": same}, tokens), model.apply({"params": params}, tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, "model_type='gemma2', but load_llama reads llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='dynamic'"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0, which is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"vocab_size": 62}, r"embed_tokens.weight has shape \(61, 32\)"),
        ({"num_hidden_layers": 1}, r"layers\.1\..* has no counterpart"),
        ({"num_hidden_layers": 3}, r"q_proj.weight is missing"),
        ({"attention_bias": True}, r"q_proj.bias is missing"),
        ({"num_attention_heads": None}, "has no field 'num_attention_heads'"),
    ],
)
def test_what_a_configuration_has_beyond_the_model_is_refused_by_name(peers, tmp_path, changes, words):
    saved(peers, "llama-tied", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        load_llama(tmp_path)


def test_missing_files_and_impossible_contexts_are_named(peers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        load_llama(tmp_path)
    saved(peers, "llama-tied", tmp_path)
    with pytest.raises(ValueError, match="context_length=97 must be from 1 to max_position_embeddings=96"):
        load_llama(tmp_path, context_length=97)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_llama(tmp_path)


def write_tokenizer(directory, first=None):
    """Write a tokenizer of single letters; `first` is put before each text."""
    tokenizers = pytest.importorskip("tokenizers", reason="install the extra train")
    vocabulary = {"<s>": 0, "</s>": 1, "<eot>": 2} | {chr(97 + number): 3 + number for number in range(26)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<s>", "</s>", "<eot>"])
    if first is not None:
        template = {"single": f"{first} $A", "special_tokens": [(first, vocabulary[first])]}
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**template)
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))


def text_of(capsys, *options):
    assert command.main([*map(str, options)]) == 0
    return capsys.readouterr().out.rstrip("\n")


def test_the_command_continues_a_text_as_transformers_does(peers, tmp_path, capsys):
    theirs = saved(peers, "qwen3", tmp_path)
    write_tokenizer(tmp_path, first="<s>")
    expected = their_tokens(peers[0], theirs, [[0, 3, 4, 5]], 12)[0]
    text = text_of(capsys, "--model", tmp_path, "--prompt", "abc", "--tokens", 12, "--temperature", 0)
    letters = "".join(chr(94 + token) for token in expected if 3 <= token < 29)
    assert text == "abc" + letters
    # Any of several end tokens ends the text.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, int(expected[5])]}))
    text = text_of(capsys, "--model", tmp_path, "--prompt", "abc", "--tokens", 12, "--temperature", 0)
    end = expected.tolist().index(expected[5])
    assert text == "abc" + "".join(chr(94 + token) for token in expected[:end] if 3 <= token < 29)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"model_type": "gemma2"}, [], "model_type='gemma2', but --model reads gpt2, llama, mistral, qwen2, qwen3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, [], "rope_type='dynamic'"),
        ({}, ["--prompt", ""], "--prompt is empty"),
        ({"eos_token_id": 99}, [], "has the token 99, but the model has 61"),
        ({"eos_token_id": "end"}, [], "eos_token_id='end' must be a token id"),
    ],
)
def test_what_the_command_cannot_load_is_one_sentence(peers, tmp_path, capsys, changes, options, words):
    saved(peers, "llama-tied", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    write_tokenizer(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert command.main(["--model", str(tmp_path), "--tokens", "2", *options]) == 2
    assert words in capsys.readouterr().err


def test_the_command_reads_a_gpt2_by_its_model_type(peers, tmp_path, capsys):
    transformers = peers[1]
    config = transformers.GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 1, "bos_token_id": 0}))
    (tmp_path / "generation_config.json").unlink()
    assert text_of(capsys, "--model", tmp_path, "--prompt", "abc", "--tokens", 0) == "abc"
    assert command.main(["--model", str(tmp_path), "--gpt2", str(tmp_path)]) == 2
    assert "name one model" in capsys.readouterr().err
