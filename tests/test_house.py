"""The house keeps its rooms small: no long file, and no folder full of them."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400
MOST_PYTHON_FILES = 15
"""In one folder; what lies in folders below it is not counted."""
LANGUAGES = (".py", ".c", ".h")


def sources(root: Path) -> list[Path]:
    """Python and C that git tracks or would track; without git, no hidden one, no link."""
    paths = listed(root) if shutil.which("git") else None
    if paths is None:
        paths = walked(root)
    return sorted(path for path in paths if path.suffix in LANGUAGES and path.is_file())


def listed(root: Path) -> list[Path] | None:
    """Nothing where the folder is no checkout of its own."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (root / ".git").exists():
        return None
    return [root / name for name in filter(None, done.stdout.split("\0"))]


def walked(folder: Path) -> list[Path]:
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_symlink():
            continue
        found += walked(path) if path.is_dir() else [path]
    return found


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    found = {path: lines(path) for path in sources(ROOT)}
    assert len(found) > 100
    long = {str(p.relative_to(ROOT)): count for p, count in found.items() if count > MOST_LINES}
    assert long == {}, f"more than {MOST_LINES} lines: split them by subject"


def test_no_folder_holds_more_python_files_than_a_reader_can_scan() -> None:
    """`__init__.py` counts."""
    python = [path for path in sources(ROOT) if path.suffix == ".py"]
    held = Counter(str(path.parent.relative_to(ROOT)) for path in python)
    full = {folder: count for folder, count in held.items() if count > MOST_PYTHON_FILES}
    assert full == {}, f"more than {MOST_PYTHON_FILES} Python files: make rooms of them"


def test_without_git_the_disk_is_read(tmp_path: Path) -> None:
    for name in ("a/long.py", "a/kernel.c", "a/kernel.h", "a/text.txt", ".venv/lib.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n" * 3)
    (tmp_path / "link").symlink_to("a")
    found = sources(tmp_path)
    assert [path.name for path in found] == ["kernel.c", "kernel.h", "long.py"]
    assert lines(found[0]) == 3
