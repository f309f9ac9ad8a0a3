"""Files of commands: written as a whole, through links, and never in place of a device or a stream."""

import os
import socket
import stat

import pytest

from jaxattn.files import check_input, check_output, read_json, write_whole


def make_special(kind, path):
    """Make something at a path that is no regular file."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to a fifo":
        os.mkfifo(path.with_name("target"))
        path.symlink_to("target")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except OSError:
            pytest.skip("may not make devices here")


@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a fifo", "socket", "device"])
def test_what_is_no_file_is_named_and_never_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / "page"
    make_special(kind, path)
    before = os.lstat(path), os.listdir(tmp_path)
    with pytest.raises(ValueError, match=r"--out \S*page is a (stream|directory|socket|device): name a file"):
        check_output("--out", path)
    with pytest.raises(ValueError, match=r"--text \S*page is a (stream|directory)"):
        check_input("--text", path)
    with pytest.raises(OSError, match="page"):
        write_whole(path, b"new")
    after = os.lstat(path), os.listdir(tmp_path)
    assert (before[0].st_ino, before[0].st_mode, before[1]) == (after[0].st_ino, after[0].st_mode, after[1])


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_stays_a_link_to_the_new_content(tmp_path, exists):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    if exists:
        target.write_bytes(b"old")
        target.chmod(0o600)
    (tmp_path / "link").symlink_to(target)
    check_output("--out", tmp_path / "link")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    if exists:
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "folder") == ["target"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "page").write_bytes(b"old")
    (tmp_path / "page.partial").symlink_to("elsewhere")  # left by something else
    with pytest.raises(TypeError):
        write_whole(tmp_path / "page", "no bytes")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"page": b"old"}


def test_a_file_in_no_folder_or_of_no_name_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--out \S*no/page is not in an existing folder"):
        check_output("--out", tmp_path / "no" / "page")
    with pytest.raises(OSError, match=r"--out \S*xxx: File name too long"):
        check_output("--out", tmp_path / ("x" * 300))
    with pytest.raises(FileNotFoundError, match=r"--text .* does not exist"):
        check_input("--text", tmp_path / "page")
    (tmp_path / "a").symlink_to("a")
    for check in (check_input, check_output):
        with pytest.raises(OSError, match="Too many levels of symbolic links; name another file"):
            check("--out", tmp_path / "a")


def test_json_that_is_nested_without_end_is_damaged(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_json(tmp_path / "config.json")
