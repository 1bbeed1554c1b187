"""If the data folder cannot be used, the start reports the setting and leaves no files."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT
from usage_plugin.api import ConfigError, open_tracker
from usage_plugin.cli.doctor.environment import check_folder
from usage_plugin.runtime.data_folder import prepare_data_folder


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        prepare_data_folder(folder)
    assert "usage_plugin.data_dir" in str(error.value)
    assert "USAGE_PLUGIN_DATA_DIR" in (error.value.hint or "")
    return error.value.message


def test_a_folder_is_made_for_its_owner_and_left_empty(tmp_path: Path):
    """The folder is created with its parents, only for its owner, and a second call changes nothing."""
    for _ in range(2):
        prepare_data_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_its_place_is_named(tmp_path: Path):
    """A file in the place of the folder, or of one above it, is named."""
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert (
            refused(folder) == f"usage_plugin.data_dir: expected a folder; found something else: {tmp_path / 'file'}."
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path):
    """A dangling link exists, but is not a folder."""
    (tmp_path / "link").symlink_to(tmp_path / "none" / "none")
    assert str(tmp_path / "link") in refused(tmp_path / "link")


IN_A_READ_ONLY_MOUNT = """
mount -t tmpfs -o ro,size=64k none "$1" || exit 77
exec "$2" -c "
import sys
from pathlib import Path
from usage_plugin.runtime.data_folder import prepare_data_folder
prepare_data_folder(Path(sys.argv[1]))
" "$3"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's unshare")
@pytest.mark.parametrize("below", ["", "data"], ids=["the mount itself", "a folder below it"])
def test_a_read_only_mount_is_named_for_root_too(tmp_path: Path, below: str):
    """The process is root in a mount namespace of its own, where file permissions alone would allow the write."""
    mount = tmp_path / "mount"
    mount.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", IN_A_READ_ONLY_MOUNT, "sh", mount, sys.executable, mount / below],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this system makes no mount namespaces: {done.stderr}")
    assert (
        f"usage_plugin.data_dir: the folder {mount / below} cannot be written to: Read-only file system." in done.stderr
    )


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_is_there_and_takes_no_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    """On a read-only mount the folder exists, and only creating a file fails."""

    def fail(*_: object, **__: object):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    assert refused(tmp_path) == (
        f"usage_plugin.data_dir: the folder {tmp_path} cannot be written to: {os.strerror(number)}."
    )


def test_a_full_disk_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk does not prevent the start: existing files work, and later writes report the error."""

    def fail(*_: object, **__: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    prepare_data_folder(tmp_path)


async def test_a_tracker_says_it_too(tmp_path: Path):
    """A tracker reports the error before it opens any file, like each worker of the proxy."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"usage_plugin\.data_dir: expected a folder"):
        async with open_tracker({"data_dir": str(tmp_path / "file")}):
            pass


def test_the_doctor_names_a_file_in_its_place(tmp_path: Path):
    """The doctor reports one problem with the setting, instead of advice about the file's mode."""
    (tmp_path / "file").write_text("mine")
    (finding,) = check_folder(tmp_path / "file")
    assert "is not a folder" in str(finding)
    assert "usage_plugin.data_dir" in str(finding)
