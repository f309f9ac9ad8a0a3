from argparse import ArgumentParser

import pytest

from jaxattn.training.config import TrainConfig, add_options, from_options


def parse(*arguments, saved=None):
    parser = ArgumentParser()
    add_options(parser)
    return from_options(parser.parse_args([str(argument) for argument in arguments]), saved)


def test_options_are_fields():
    assert parse() == TrainConfig()
    config = parse("--text", "a", "b", "--steps", 3, "--dropout", 0.5, "--remat", "--mesh", "data=2,model=2")
    assert config == TrainConfig(text=("a", "b"), steps=3, dropout=0.5, remat=True, mesh="data=2,model=2")


def test_what_is_not_given_is_as_saved():
    saved = TrainConfig(text=("a",), steps=3, width=64)
    assert parse(saved=saved) == saved
    assert not parse("--no-remat", saved=TrainConfig(remat=True)).remat
    assert saved.differences(parse("--width", 32, "--mesh", "data=2", saved=saved)) == ["--width 64, not 32"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", 0], "--steps is 0"),
        (["--heads", 3], "--width 129"),
        (["--dropout", 1], "dropout_rate=1.0"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--dtype", "int8"], "--dtype is 'int8', but must be float32 or bfloat16"),
        (["--mesh", "rows=2"], "'rows=2' is not understood"),
        (["--mesh", "data=0"], "'data=0' is not understood"),
        (["--mesh", "seq=2", "--dropout", 0.1], "--mesh seq="),
        (["--tensorboard"], "--out DIR"),
        (["--task", "chess"], "--task is 'chess'"),
        (["--vocab-size", 300], "--vocab-size 300 is for --tokenizer bpe alone"),
        (["--out", "dir\udce9"], "cannot be shown"),
        (["--task", "pronouns", "--text", "a"], "leave --text"),
        (["--task", "pronouns", "--context-length", 16], "write --context-length 27 or more"),
    ],
)
def test_what_is_wrong_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        parse(*arguments)
