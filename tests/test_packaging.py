"""The four folders install under one import name, from the tree and from the sdist alike."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("export", "quantize", "runtime")
FOLDERS = ("retnet_edge", *MAPPED)
PLUGIN = "optimum/commands/register/register_retnet_edge.py"  # what optimum-cli looks for
PACKAGE_DATA = {"html.j2", "typed"}
LIBRARY = "retnet_edge/runtime/backends/native/_native."


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package_files(tree: Path) -> set[str]:
    """Installed names of all modules and data files: export/x.py is retnet_edge/export/x.py."""
    return {PLUGIN} | {
        (path if folder == "retnet_edge" else Path("retnet_edge") / path).as_posix()
        for folder in FOLDERS
        for path in (found.relative_to(tree) for found in sources(tree / folder))
        if path.suffix == ".py" or path.name.split(".", 1)[-1] in PACKAGE_DATA
    }


def sources(folder: Path) -> list[Path]:
    """Files below a folder, without those behind links to other folders and without caches."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.is_symlink() and path.name != "__pycache__":
                found += sources(path)
        else:
            found.append(path)
    return found


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names)), "a file is in the wheel twice"
    return set(names)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks or would track, so that no build litters the repository."""
    copy = tmp_path_factory.mktemp("tree")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).exists() or name.startswith("checkpoints/"):
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", out, tree, cwd=out)
    (found,) = out.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("from-sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = out.iterdir()
    return build_wheel(unpacked, out / "dist")


@pytest.fixture(scope="module")
def wheel(tree: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree; built after the sdist, whose leftovers must not change it."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


def build_wheel(source: Path, out: Path) -> Path:
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel"]
    run(*build, "-o", out, source, cwd=source)
    (found,) = out.glob("*.whl")
    return found


def test_packages_name_every_folder_on_disk() -> None:
    """setuptools leaves a folder that `packages` does not name out of the wheel, silently."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {f"retnet_edge.{name}": name for name in MAPPED}
    mapped |= {"optimum.commands.register": "optimum_plugin"}
    assert settings["package-dir"] == mapped
    on_disk = {
        ".".join(("retnet_edge", *place.parts) if place.parts[0] in MAPPED else place.parts)
        for folder in FOLDERS
        for place in {path.parent.relative_to(ROOT) for path in sources(ROOT / folder)}
    }
    assert sorted(settings["packages"]) == sorted({*on_disk, "optimum.commands.register"})
    for folder in FOLDERS:
        for path in sources(ROOT / folder):
            assert (path.parent / "__init__.py").is_file(), path.parent


def test_links_point_at_the_folders() -> None:
    links = {path.name: path for path in (ROOT / "retnet_edge").iterdir() if path.is_symlink()}
    assert set(links) == set(MAPPED)
    for name, link in links.items():
        assert link.readlink() == Path("..", name)


def test_wheel_holds_the_package_and_nothing_else(tree: Path, wheel: Path) -> None:
    names = wheel_files(wheel)
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    built = {name for name in package if name.startswith(LIBRARY)}
    assert len(built) == (shutil.which("cc") is not None)
    assert package - built == package_files(tree)
    assert "retnet_edge/py.typed" in package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_from_the_sdist_is_the_same(tree: Path, wheel: Path, wheel_from_sdist: Path) -> None:
    assert wheel_files(wheel_from_sdist) == wheel_files(wheel)
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(wheel_from_sdist) as theirs:
        for name in package_files(tree):
            assert ours.read(name) == theirs.read(name), name


def test_sdist_holds_every_source_once(tree: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "a link in the sdist"
    names = [member.name.split("/", 1)[1] for member in members if member.isfile()]
    assert len(names) == len(set(names))
    through_links = tuple(f"retnet_edge/{folder}/" for folder in MAPPED)
    assert not [name for name in names if name.startswith(through_links)]
    expected = {
        path.relative_to(tree).as_posix()
        for folder in FOLDERS
        for path in sources(tree / folder)
        if path.suffix == ".py"
    }
    expected.add("optimum_plugin/register_retnet_edge.py")
    expected |= {path.relative_to(tree).as_posix() for path in sources(tree / "native")}
    assert expected | {"pyproject.toml", "README.md", "LICENSE"} <= set(names)


def test_wheel_installs_one_name_and_a_file_for_optimum(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", target, wheel, cwd=tmp_path)
    names = {path.name for path in target.iterdir() if path.suffix != ".dist-info"}
    assert names - {"bin"} == {"retnet_edge", "optimum"}
    files = list((target / "optimum").rglob("*.py"))
    assert files == [target / PLUGIN]  # no __init__.py: the namespace is optimum's
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import retnet_edge.runtime.bundle.manifest\n"
        "print(retnet_edge.runtime.bundle.manifest.__file__)"
    )
    found = run(sys.executable, "-c", code, cwd=tmp_path).strip()
    assert Path(found) == target / "retnet_edge" / "runtime" / "bundle" / "manifest.py"
