import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxattn.training.tokenizer import (
    bytes_tokenizer,
    learn_bpe,
    open_tokenizer,
    printable,
    read_tokenizer,
    write_tokens,
)

TEXT = "the old dog chased the quick fox which bit him. Müßiggang 🦊\n" * 40


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with a text and a tokenizer learned from it."""
    place = tmp_path_factory.mktemp("run")
    (place / "text").write_text(TEXT, encoding="utf-8")
    (place / "tokenizer.json").write_text(learn_bpe([place / "text"], 300), encoding="utf-8")
    return place


@given(st.text())
def test_bytes_round_trip(text):
    tokens = bytes_tokenizer().encode(text.encode("utf-8", "ignore").decode())
    assert bytes(tokens).decode() == text.encode("utf-8", "ignore").decode()
    assert printable(tokens).isprintable() or {"\n", "\t"} & set(printable(tokens))


def test_a_learned_tokenizer_compresses_its_text_and_any_text_round_trips(learned):
    tokenizer = open_tokenizer(learned)
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2
    for text in (TEXT, "Žluťoučký kůň", "\x00\t 漢字"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_text_gives_the_same_tokenizer(learned):
    assert learn_bpe([learned / "text"], 300) == (learned / "tokenizer.json").read_text(encoding="utf-8")


def test_a_run_without_a_tokenizer_file_uses_bytes(tmp_path):
    assert open_tokenizer(tmp_path).vocab_size == 256


def test_token_files_hold_the_text_and_are_written_once(learned):
    tokenizer = open_tokenizer(learned)
    (path,), dtype = write_tokens(tokenizer, [learned / "text"], learned / "tokens")
    assert tokenizer.decode(np.fromfile(path, dtype)) == TEXT
    made = path.stat().st_mtime_ns
    write_tokens(tokenizer, [learned / "text"], learned / "tokens")
    assert path.stat().st_mtime_ns == made
    assert [file.name for file in (learned / "tokens").iterdir()] == ["0.uint16"]


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_text_has_the_same_tokens_on_any_number_of_cores(learned, tmp_path, monkeypatch, cores):
    text = TEXT + "\n\n  two spaces, then the last piece without the end of a line " * 9
    (tmp_path / "text").write_text(text, encoding="utf-8")
    monkeypatch.setattr("jaxattn.training.tokenizer.PIECE", 999)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    tokenizer, batches = open_tokenizer(learned), []
    counting = tokenizer._replace(encode_batch=lambda texts: batches.append(texts) or tokenizer.encode_batch(texts))
    (path,), dtype = write_tokens(counting, [tmp_path / "text"], tmp_path / "tokens")
    one_by_one = [token for texts in batches for piece in texts for token in tokenizer.encode(piece)]
    assert np.fromfile(path, dtype).tolist() == one_by_one
    assert "".join(piece for texts in batches for piece in texts) == text
    assert {len(texts) for texts in batches[:-1]} == {cores}


def test_a_word_that_is_not_in_the_vocabulary_is_named_in_a_batch_too(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="install the extra train")
    given = tokenizers.Tokenizer(tokenizers.models.WordLevel({"dog": 0}, unk_token="[UNK]"))
    given.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"'fox' has a word that is not in"):
        open_tokenizer(tmp_path).encode_batch(["dog", "fox"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"x" * 3_000_000, b"a line\n" * 400_000, b"\xff\xfe \n" * 10, "漢".encode() * 700_001], ids=len
)
def test_long_texts_and_invalid_bytes_are_read_in_pieces(learned, tmp_path, content):
    (tmp_path / "text").write_bytes(content)
    (path,), dtype = write_tokens(open_tokenizer(learned), [tmp_path / "text"], tmp_path / "tokens")
    assert open_tokenizer(learned).decode(np.fromfile(path, dtype)) == content.decode(errors="replace")


def test_truncation_padding_and_special_tokens_of_a_given_tokenizer_are_ignored(learned, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="install the extra train")
    given = tokenizers.Tokenizer.from_file(str(learned / "tokenizer.json"))
    given.add_special_tokens(["[BOS]"])
    given.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", given.token_to_id("[BOS]"))]
    )
    given.enable_truncation(8)
    given.enable_padding(length=9)
    given.save(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer(tmp_path)
    assert opened.encode(TEXT) == open_tokenizer(learned).encode(TEXT)
    assert opened.vocab_size == 301


def test_the_end_of_a_document_is_one_token(learned):
    tokenizer = open_tokenizer(learned)
    assert tokenizer.encode("dog<|endoftext|>fox").count(tokenizer.eos_token) == 1


def test_a_file_that_is_not_a_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or not a tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")
