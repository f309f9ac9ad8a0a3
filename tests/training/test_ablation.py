import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from jaxattn.training import ablation
from jaxattn.training.ablation import PARTS, ablate, changed, check_ablation
from jaxattn.training.comparison import Comparison, Result, comparison_table, label, sentence, sentences, write_page
from jaxattn.training.config import TrainConfig
from jaxattn.training.run import Run

CONFIG = TrainConfig(steps=40)


def compare(part, loss, *, train_loss=2.0, cut_loss=2.1, sample_loss=2.3, config=CONFIG):
    """A comparison of a whole model, of loss 2.1, with a model of this loss."""
    whole = Result([(0, 5.6), (20, 2.4), (40, 2.1)], 2.0, 2.1, "the dog", 2.3)
    other = Result([(0, 5.6), (20, 3.0), (40, loss)], train_loss, cut_loss, "x~`|\n", sample_loss)
    return Comparison(config, "byte", 2.5, "the old ", {"whole": whole, part: other})


NO_PREDICTION = "and even the bigram model's 2.50: it has not learned to predict. So what it writes is bad"
LEAK = "too good to be true: each position attends to the very byte that it must predict"
TWICE = "is 2.40, not 2.10: like choosing among 11.0 bytes, not 8.17. The whole model was as good by step 20."
MEMORIZES = "0.10 above the training loss without dropout, and 0.01 with it: dropout makes the model memorize less"
HARDLY = "0.01 above the training loss without dropout, and 0.10 with it: the model has hardly memorized"
DROPPED = TrainConfig(dropout=0.2)


@pytest.mark.parametrize(
    ("comparison", "words", "absent"),
    [
        (compare("causal", 0.05, cut_loss=7.0, sample_loss=6.0), NO_PREDICTION, "as well as"),
        (compare("causal", 0.05, cut_loss=2.3, sample_loss=2.4), "2.30, above the whole model's 2.10: it has", "bad"),
        (compare("causal", 0.05), LEAK, "not learned"),
        (compare("causal", 2.2), "has not learned that yet", "too good"),
        (compare("scale", 2.4), TWICE, "seed"),
        (compare("scale", 2.11), "could be that of another --seed", "one-hot"),
        (compare("heads", 2.101), "is 2.10, as that of the whole model: like choosing among 8.17 bytes.", "not 2.10"),
        (compare("scale", 1.9), "In this run the model is better that way.", "one-hot"),
        (compare("heads", 2.4), "With one head, not 4, the held-out loss after 40 steps", "seed"),
        (compare("positions", 2.15), "Without positions, the held-out loss", "seed"),
        (compare("dropout", 2.4, train_loss=2.39), "With dropout 0.1, the held-out loss after 40", "Without"),
        (compare("dropout", 2.4, train_loss=2.39), MEMORIZES, "hardly"),
        (compare("dropout", 2.0, train_loss=1.99, config=DROPPED), HARDLY, "less"),
    ],
)
def test_a_sentence_is_true_to_its_numbers(comparison, words, absent):
    (text,) = sentences(comparison)
    assert words in text
    assert absent not in text


def test_without_a_bigram_model_or_the_other_model_nothing_is_said_of_it():
    comparison = compare("causal", 0.05, cut_loss=7.0, sample_loss=None)._replace(bigram=None)
    assert "bigram" not in sentence(comparison, "causal")
    assert sentences(comparison._replace(results={"whole": comparison.results["whole"]})) == []


def test_the_page_and_the_table_show_what_every_model_writes(tmp_path):
    comparison = compare("causal", 0.05)
    write_page(comparison, tmp_path)
    page = (tmp_path / "ablation.md").read_text()
    assert sentence(comparison, "causal") in page
    assert "| without the causal mask | 0.05 | ``  x~`\\|\\n  `` |" in page
    assert "without the causal mask: held-out loss 0.05, like choosing among 1.05 bytes" in comparison_table(comparison)


def test_each_part_changes_one_thing():
    assert [changed(CONFIG, part)[1] for part in ("whole", *PARTS)] == [
        (), ("causal",), ("scale",), (), (), ("positions",),
    ]  # fmt: skip
    base = changed(CONFIG, "whole")[0]
    for part, difference in ("heads", {"heads": 1}), ("dropout", {"dropout": 0.1}), ("scale", {}):
        assert changed(CONFIG, part)[0] == dataclasses.replace(base, **difference)
    dropped = dataclasses.replace(CONFIG, dropout=0.2)
    assert changed(dropped, "dropout")[0].dropout == 0
    assert (label(CONFIG, "dropout"), label(dropped, "dropout")) == ("with dropout 0.1", "without dropout")


@pytest.mark.parametrize(
    ("changes", "part", "resumes", "words"),
    [
        ({}, "causal", True, "leave --resume out"),
        ({"out": None}, "causal", False, "name one with --out DIR"),
        ({"tensorboard": True}, "causal", False, "leave --tensorboard out"),
        ({"heads": 1}, "heads", False, "write --heads 4"),
        ({"mesh": "data=1,model=2"}, "heads", False, "leave model= out"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(changes, part, resumes, words):
    with pytest.raises(ValueError, match=words):
        check_ablation(dataclasses.replace(CONFIG, **({"out": "runs/parts"} | changes)), [part], resumes)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "heads"])
def test_every_part_but_heads_can_be_left_out_on_any_mesh(part):
    mesh = "data=1,model=2,seq=2"
    assert check_ablation(dataclasses.replace(CONFIG, out="runs/parts", mesh=mesh), [part], resumes=False) is None


@pytest.fixture
def small(tmp_path):
    """A configuration that trains quickly."""
    words = np.random.default_rng(0).choice(["the", "old", "dog", "chased", "a", "fox", "which", "bit", "him"], 3000)
    (tmp_path / "text").write_text(" ".join(words))
    return TrainConfig(
        text=(str(tmp_path / "text"),), layers=1, heads=2, width=16, context_length=16, batch_size=4, steps=20,
        mesh="data=1", out=str(tmp_path / "parts"),
    )  # fmt: skip


@pytest.mark.slow
def test_all_parts_are_compared_from_the_same_start_and_the_whole_model_is_that_of_a_run(small, tmp_path, capsys):
    config = dataclasses.replace(small, steps=200, layers=2, width=32)
    assert ablate(config, PARTS) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "parts" / "ablation.json").read_text())["results"]
    assert list(results) == ["whole", *PARTS]
    outcome = Run(dataclasses.replace(config, out=None)).train()
    assert results["whole"]["curve"][0] == [0, outcome.before.held_out]
    assert results["whole"]["curve"][-1] == [200, outcome.after.held_out]
    assert results["whole"]["train_loss"] == outcome.after.train
    assert results["causal"]["curve"][-1][1] < outcome.after.held_out + 0.05
    assert results["causal"]["cut_loss"] > results["causal"]["curve"][-1][1]  # no later tokens to read
    page = (tmp_path / "parts" / "ablation.md").read_text()
    written = [line[2:] for line in page.splitlines() if line.startswith("- ")]
    assert len(written) == len(PARTS)
    assert all(text in printed for text in written)
    assert {"ablation.png", "ablation.svg", "ablation.md"} <= set(os.listdir(tmp_path / "parts"))
    assert not (tmp_path / "parts" / "model.safetensors").exists()


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_what_is_finished_and_continues(small, tmp_path, monkeypatch, capsys):
    result, trained = ablation._Variant.result, []

    def interrupted(variant, received_signal):
        trained.append(variant.model.without)
        if variant.model.without == ("scale",):
            os.kill(os.getpid(), signal.SIGTERM)
        return result(variant, received_signal)

    with monkeypatch.context() as patch:
        patch.setattr(ablation._Variant, "result", interrupted)
        assert ablate(small, ["causal", "scale", "positions"]) == 128 + signal.SIGTERM
    assert trained == [(), ("causal",), ("scale",)]
    said = capsys.readouterr()
    assert "the same command continues" in said.out
    assert f"keeps the models that are finished in {small.out}" in said.err
    file = tmp_path / "parts" / "ablation.json"
    before = json.loads(file.read_text())["results"]
    assert list(before) == ["whole", "causal"]
    assert "without the causal mask" in (tmp_path / "parts" / "ablation.md").read_text()
    with pytest.raises(ValueError, match="compares other models, with --width 16, not 32: name another --out"):
        ablate(dataclasses.replace(small, width=32), ["causal"])
    assert ablate(small, ["scale"]) == 0
    after = json.loads(file.read_text())["results"]
    assert list(after) == ["whole", "causal", "scale"]
    assert {part: after[part] for part in before} == before


def test_a_directory_with_a_run_or_a_damaged_comparison_is_refused(small, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "ablation.json").write_text('{"results": 1}')
    with pytest.raises(ValueError, match=r"ablation\.json is damaged"):
        ablate(small, ["causal"])
    (tmp_path / "parts" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a training run: name another --out for --ablate"):
        ablate(small, ["causal"])
