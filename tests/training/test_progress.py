import os
import subprocess
import sys
import textwrap

from jaxattn.training.progress import Progress


def test_lines_show_step_loss_and_speed_without_compilation_and_pauses(capsys):
    with Progress(first=0, steps=4, tokens_per_step=1000) as progress:
        assert progress.update(1, 5.0) is None  # includes compilation
        assert progress.update(2, 4.0) > 0
        progress.pause()
        assert progress.update(3, 3.0) is None
        assert progress.update(4, 2.0) > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [[f"step {n}/4", f"loss {6.0 - n - 0:.3f}"] for n in range(1, 5)]
    assert lines[-1].endswith("0:00:00 left")
    assert progress.tokens_per_second > 0


def test_quiet_prints_nothing(capsys):
    with Progress(first=0, steps=1, tokens_per_step=1, quiet=True) as progress:
        progress.update(1, 1.0)
        progress.say("nothing")
    assert capsys.readouterr().out == ""


def test_a_closed_pipe_or_a_poor_encoding_does_not_end_the_program():
    program = """
        import sys
        from jaxattn.training.progress import say
        say("Müßiggang 🦊")
        sys.stdin.readline()
        for _ in range(3):
            say("to nobody")
        print("done", file=sys.stderr)
    """
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdout.readline() == "Müßiggang ?\n".encode("latin-1")
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b"done\n"
    assert process.returncode == 0
