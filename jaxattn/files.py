"""Files that commands read and write: what cannot work is refused in one sentence, before the work starts."""

import json
import os
import stat
from pathlib import Path
from typing import Any


def check_input(name: str, file: Path) -> None:
    """Check that a regular file is there to be read; `name` is the option, such as "--text".

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is a directory, a device or a stream.
    """
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        problem = " does not exist" if isinstance(error, FileNotFoundError) else ""
        raise type(error)(f"{name} {file}{problem}: {error.strerror}; name another file") from None
    except ValueError as error:  # a null character
        raise ValueError(f"{name} {file}: {error}") from None
    if not stat.S_ISREG(mode):
        advice = "directory: name a file in it" if stat.S_ISDIR(mode) else "stream: save what it holds to a file first"
        raise ValueError(f"{name} {file} is a {advice}")
    if not os.access(file, os.R_OK):
        raise PermissionError(f"{name} {file}: you may not read this file")


def check_output(name: str, file: Path) -> None:
    """Check that `write_whole` can write this file; `name` is the option, such as "--out".

    Raises:
        OSError: its folder does not exist, or cannot be written.
        ValueError: it is a directory, a device or a stream.
    """
    try:
        target, mode = _target(file)
    except OSError as error:
        raise type(error)(f"{name} {file}: {error.strerror}; name another file") from None
    except ValueError as error:  # a null character
        raise ValueError(f"{name} {file}: {error}") from None
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{name} {file} is a {_kind(mode)}: name a file, which is written as a whole")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name} {file} is not in an existing folder: make {target.parent} first")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{name} {file}: you may not write in the folder {target.parent}")


def write_whole(file: Path, content: bytes) -> None:
    """Replace a file as a whole: if writing fails, the old file stays. A link stays a link to the new content.

    Raises:
        OSError: the disk is full, the directory cannot be written, or the file is a device or a stream.
    """
    target, mode = _target(file)
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{file} is a {_kind(mode)}, which is not replaced by a file: name another one")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as out:
            out.write(content)
        if mode is not None:
            partial.chmod(stat.S_IMODE(mode))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds an object of JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def _target(file: Path) -> tuple[Path, int | None]:
    """Follow all links; return where they lead, and the mode of what is there, None if there is nothing yet."""
    target = Path(os.path.realpath(file))
    try:
        return target, os.stat(target).st_mode
    except FileNotFoundError:
        return target, None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "stream", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
