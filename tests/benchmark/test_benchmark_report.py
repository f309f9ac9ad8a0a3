import pytest

from jaxattn.benchmark.plot import plot
from jaxattn.benchmark.report import heading, line, markdown

ROWS = [
    {
        "group": "attention",
        "direction": "forward",
        "mask": "causal",
        "B": 1,
        "T": T,
        "name": name,
        "seconds": seconds * T,
        "relative": seconds * 1e5,
        "compile_seconds": 0.5,
        "gflops": 3.0,
        "of_matmul": 0.25,
        "bytes": 2**20 * T,
    }
    for T in (64, 128)
    for name, seconds in (("jaxattn", 1e-5), ("jax.nn", 3e-5))
]


def test_a_table_has_a_line_for_each_length_and_says_how_many_times_slower_a_peer_is():
    lines = markdown(ROWS).splitlines()
    assert lines[0] == "| forward, causal | jaxattn | jax.nn |"
    assert lines[2] == "| T=64 | 0.64 ms, 64 MB | 1.92 ms (3.00 ×), 64 MB |"
    assert len([each for each in lines if each.startswith("| T=")]) == 2


def test_a_row_is_a_line_on_the_terminal_below_what_all_share():
    assert heading(ROWS[1]) == "forward, B=1 T=64"
    words = line(ROWS[1]).split()
    expected = "attention, causal jax.nn 1.920 ms 3.0 GFLOP/s 25% of matmul compiled in 0.5 s 64 MB 3.00 ×"
    assert words == expected.split()
    decoding = {"group": "decoding", "B": 2, "T": 66, "name": "jaxattn", "seconds": 2.0, "relative": 1.0}
    decoding |= {"compile_seconds": 0.0, "tokens_per_second": 50.0}
    assert heading(decoding) == "decoding, B=2 T=66"
    assert line(decoding).split() == ["decoding", "jaxattn", "2000.000", "ms", "50.0", "tokens/s", "1.00", "×"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="pictures need the extra bench")
    file = tmp_path / f"picture.{suffix}"
    plot(ROWS, file)
    assert file.stat().st_size > 1000
    with pytest.raises(ValueError, match=r"must end in a picture format: write picture\.png"):
        plot(ROWS, tmp_path / "picture")
