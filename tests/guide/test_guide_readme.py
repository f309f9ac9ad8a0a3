from pathlib import Path

import jaxattn.guide


def test_the_example_in_the_guides_readme_prints_what_it_says(capsys):
    text = (Path(jaxattn.guide.__file__).parent / "README.md").read_text(encoding="utf-8")
    (program,) = (part.partition("```")[0] for part in text.split("```python\n")[1:])
    exec(compile(program, "README.md", "exec"), {})
    expected = [line.partition("# ")[2] for line in program.splitlines() if line.startswith("print")]
    assert capsys.readouterr().out.splitlines() == expected
