"""libretnet by itself: CMake builds and installs it; C, C++, Rust and Python use what it put there.

What a machine lacks is skipped, with the package of Debian that has it (`make debian-native`,
`make debian-arm`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import native_extension

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
CONSUMER = Path(__file__).with_name("consumer")
STRICT = "-Wall -Wextra -Wconversion -Werror"
LARGEST_ARM_LIBRARY = 150 * 1024
"""Bytes of the stripped shared library for 64-bit ARM that issue 25 aims at."""
EXTERNAL_OF = {
    "memory, strings": "calloc free malloc posix_memalign memcmp memcpy memset strcmp strlen",
    "files": "close fstat fsync getpid mmap munmap open rename sysconf unlink write",
    "time": "clock_gettime",
    "formatted sentences and errno": "snprintf vsnprintf __errno_location",
    "mathematics": "cos erff expm1 fmod ldexp log rint sin sincos",
    "threads": "pthread_create pthread_join sched_yield pthread_cond_broadcast"
    " pthread_cond_destroy pthread_cond_init pthread_cond_wait pthread_mutex_destroy"
    " pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock",
    "what an ARM processor has": "getauxval __getauxval",
    "begin and end of every shared library": "__cxa_finalize __gmon_start__"
    " _ITM_deregisterTMCloneTable _ITM_registerTMCloneTable",
}
EXTERNAL = frozenset(name for names in EXTERNAL_OF.values() for name in names.split())
"""All that the shared library asks of others. A new name is one more thing to have on a device."""

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None,
    reason="needs CMake and a C compiler: `make debian-native` installs them",
)


def needs(*programs: str, target: str = "debian-native") -> None:
    """Skip where one is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: `make {target}` installs it")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What it printed; it must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | (env or {}),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def configured_and_built(source: Path, build: Path, *options: str) -> Path:
    """The build folder."""
    run("cmake", "-S", source, "-B", build, *options)
    run("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a shared and a static library are installed; in a folder that was moved since."""
    folder = tmp_path_factory.mktemp("builds")
    before = folder / "before"
    for kind, shared in (("static", "OFF"), ("shared", "ON")):
        options = (f"-DBUILD_SHARED_LIBS={shared}", "-DRETNET_WERROR=ON")
        paths = (f"-DCMAKE_INSTALL_PREFIX={before}", "-DCMAKE_INSTALL_LIBDIR=lib")
        build = configured_and_built(NATIVE, folder / kind, *options, *paths)
        run("cmake", "--install", build)
        if kind == "static":
            shutil.copytree(before, folder / "static-alone")
    return before.rename(folder / "after")


@pytest.fixture(scope="module")
def arm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64", target="debian-arm")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'cmake/aarch64-linux-gnu.cmake'}"
    options = (toolchain, "-DRETNET_WERROR=ON", "-DRETNET_PAGE_SIZE=16384")
    return configured_and_built(
        NATIVE, tmp_path_factory.mktemp("arm"), *options, "-DRETNET_BUILD_TESTS=ON"
    )


def says_there_is_no_file(printed: str) -> bool:
    """What the consumers print of a file that is not there."""
    return printed.split(" ", 2) == [
        f"{header_version()}",
        "11",
        "nowhere.retnet cannot be opened: there is no such file\n",
    ]


def header_version() -> str:
    header = (NATIVE / "retnet.h").read_text()
    return ".".join(re.findall(r"#define RETNET_VERSION_M\w+ (\d+)", header))


def symbols(library: Path, which: str) -> set[str]:
    """Names of nm, without the versions of GNU's C library."""
    lines = run("nm", "-D", which, library).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def test_every_list_names_every_source() -> None:
    on_disk = {path.name for path in NATIVE.glob("*.c")}
    listed = (NATIVE / "CMakeLists.txt").read_text().partition("set(RETNET_SOURCES")[2]
    assert set(listed.partition(")")[0].split()) == on_disk
    extension = native_extension()
    assert {Path(name).name for name in extension["sources"]} == on_disk
    headers = {path.name for path in NATIVE.glob("*.h")}
    assert {Path(name).name for name in extension["depends"]} == headers


def test_flags_that_results_depend_on_are_those_of_the_package() -> None:
    extension = native_extension()
    built = (NATIVE / "CMakeLists.txt").read_text()
    flags = [flag for flag in extension["extra-compile-args"] if flag.startswith("-fno-")]
    assert flags
    for flag in ("-ffp-contract=off", *flags):
        assert flag in extension["extra-compile-args"]
        assert re.search(rf"^set\(flags .*{re.escape(flag)}", built, re.MULTILINE), flag


@pytest.mark.parametrize("kind", ["", "shared", "static"])
def test_find_package(prefix: Path, kind: str, tmp_path: Path) -> None:
    options = (f"-DCMAKE_PREFIX_PATH={prefix}", f"-DKIND={kind}")
    build = configured_and_built(CONSUMER, tmp_path, *options)
    assert says_there_is_no_file(run(build / "consumer", "nowhere.retnet"))
    linked = "libretnet.so" in run("objdump", "-p", build / "consumer")
    assert linked == (kind != "static")


def test_a_folder_of_another_project(tmp_path: Path) -> None:
    build = configured_and_built(CONSUMER, tmp_path, f"-DSOURCE={NATIVE}")
    assert says_there_is_no_file(run(build / "consumer", "nowhere.retnet"))
    assert (build / "retnet/libretnet.a").exists()


def test_find_package_refuses_another_version_and_a_missing_kind(
    prefix: Path, tmp_path: Path
) -> None:
    static_alone = prefix.with_name("static-alone")
    for folder, change in (
        (prefix, ("retnet 1.0", "retnet 2.0")),
        (static_alone, ("REQUIRED)", "REQUIRED COMPONENTS shared)")),
    ):
        project = tmp_path / folder.name
        shutil.copytree(CONSUMER, project)
        lists = project / "CMakeLists.txt"
        lists.write_text(lists.read_text().replace(*change))
        done = subprocess.run(
            ["cmake", "-S", project, "-B", project / "b", f"-DCMAKE_PREFIX_PATH={folder}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "retnet" in done.stderr


@pytest.mark.parametrize("kind", ["after", "static-alone"])
def test_pkg_config(prefix: Path, kind: str, tmp_path: Path) -> None:
    needs("pkg-config")
    folder = prefix.with_name(kind)
    where = {"PKG_CONFIG_PATH": str(folder / "lib/pkgconfig")}
    static = ["--static"] if kind == "static-alone" else []
    assert run("pkg-config", "--modversion", "retnet", env=where).strip() == header_version()
    flags = run("pkg-config", "--cflags", "--libs", *static, "retnet", env=where).split()
    run("cc", CONSUMER / "consumer.c", *flags, "-o", tmp_path / "consumer")
    libraries = {"LD_LIBRARY_PATH": str(folder / "lib")}
    assert says_there_is_no_file(run(tmp_path / "consumer", "nowhere.retnet", env=libraries))


def test_cpp(prefix: Path, tmp_path: Path) -> None:
    needs("g++")
    shutil.copy(CONSUMER / "consumer.c", tmp_path / "consumer.cpp")
    options = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{prefix}/include")
    run("g++", *options, tmp_path / "consumer.cpp", f"-L{prefix}/lib", "-lretnet",
        f"-Wl,-rpath,{prefix}/lib", "-o", tmp_path / "consumer")  # fmt: skip
    assert says_there_is_no_file(run(tmp_path / "consumer", "nowhere.retnet"))


def test_rust(prefix: Path, tmp_path: Path) -> None:
    for program in ("bindgen", "rustc"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: `apt install bindgen rustc`")
    of_ours = [f"--allowlist-{kind}=(retnet|RETNET)_.*" for kind in ("function", "type", "var")]
    run("bindgen", prefix / "include/retnet.h", *of_ours, "-o", tmp_path / "retnet.rs")
    run("rustc", "--edition=2021", CONSUMER / "consumer.rs", f"-L{prefix}/lib", "-lretnet",
        "-o", tmp_path / "consumer", env={"BINDINGS": str(tmp_path)})  # fmt: skip
    libraries = {"LD_LIBRARY_PATH": str(prefix / "lib")}
    assert says_there_is_no_file(run(tmp_path / "consumer", "nowhere.retnet", env=libraries))


def header_for_cffi(header: Path) -> str:
    """What cffi parses: the header's own lines without macros, those of others left out."""
    kept, ours = [], False
    for line in run("cc", "-E", "-DRETNET_STATIC", header).splitlines():
        if marker := re.match(r'# \d+ "(.*?)"', line):
            ours = marker[1] == str(header)
        elif ours:
            kept.append(line)
    return "\n".join(kept)


def test_cffi(prefix: Path) -> None:
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(header_for_cffi(prefix / "include/retnet.h"))
    library = ffi.dlopen(str(prefix / "lib/libretnet.so"))
    model, error = ffi.new("retnet_model **"), ffi.new("retnet_error *")
    status = library.retnet_model_open(b"nowhere.retnet", 0, model, error)
    assert status == library.RETNET_NO_FILE == error.code
    assert ffi.string(error.message) == b"nowhere.retnet cannot be opened: there is no such file"
    assert model[0] == ffi.NULL
    assert ffi.string(library.retnet_version()).decode() == header_version()


def test_only_the_header_s_names_are_exported(prefix: Path) -> None:
    exported = symbols(prefix / "lib/libretnet.so", "--defined-only")
    declared = set(re.findall(r"\b(retnet_\w+)\(", (NATIVE / "retnet.h").read_text()))
    assert exported
    assert exported <= declared


def test_a_static_library_has_no_other_names(prefix: Path) -> None:
    lines = run("nm", "--extern-only", "--defined-only", prefix / "lib/libretnet.a").splitlines()
    names = {line.split()[-1] for line in lines if len(line.split()) == 3}
    assert names == symbols(prefix / "lib/libretnet.so", "--defined-only")


def test_what_the_library_asks_of_others(prefix: Path) -> None:
    assert symbols(prefix / "lib/libretnet.so", "--undefined-only") <= EXTERNAL
    needed = re.findall(r"NEEDED +(\S+)", run("objdump", "-p", prefix / "lib/libretnet.so"))
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


@pytest.mark.parametrize("target", ["", "aarch64-linux-gnu"])
def test_clang_warns_of_nothing(target: str) -> None:
    needs("clang")
    if target:
        needs("aarch64-linux-gnu-gcc", target="debian-arm")
    machine = [f"--target={target}"] if target else []
    for source in sorted(NATIVE.glob("*.c")):
        run("clang", *machine, "-std=c11", *STRICT.split(), "-fsyntax-only", source)


def test_arm_library_is_small_and_exports_the_same(
    prefix: Path, arm_build: Path, tmp_path: Path
) -> None:
    built, stripped = (arm_build / "libretnet.so").resolve(), tmp_path / "libretnet.so"
    run("aarch64-linux-gnu-strip", "-o", stripped, built)
    assert stripped.stat().st_size <= LARGEST_ARM_LIBRARY
    names = symbols(prefix / "lib/libretnet.so", "--defined-only")
    assert symbols(stripped, "--defined-only") == names
    assert symbols(stripped, "--undefined-only") <= EXTERNAL
    segments = re.findall(r"LOAD .*align 2\*\*(\d+)", run("objdump", "-p", stripped))
    assert set(segments) == {"14"}  # 16 KiB, as Android asks for


def test_arm_checks_run_in_qemu(arm_build: Path) -> None:
    """Two of them: test_native_kernels.py runs the others, on several processors."""
    printed = run("ctest", "-R", "platform|refused", cwd=arm_build)
    assert "100% tests passed, 0 tests failed out of 2" in printed


def test_windows(tmp_path: Path) -> None:
    """It is compiled; where Wine is there (Debian: wine64), its checks run."""
    needs("x86_64-w64-mingw32-gcc")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'cmake/x86_64-w64-mingw32.cmake'}"
    options = (toolchain, "-DRETNET_WERROR=ON", "-DRETNET_BUILD_TESTS=ON")
    build = configured_and_built(NATIVE, tmp_path / "build", *options)
    imported = run("x86_64-w64-mingw32-objdump", "-p", build / "libretnet.dll")
    assert set(re.findall(r"DLL Name: (\S+)", imported)) <= {"KERNEL32.dll", "msvcrt.dll"}
    wine = {"WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    if shutil.which("wine64") or shutil.which("wine") or Path("/usr/lib/wine/wine64").exists():
        assert "100% tests passed" in run("ctest", cwd=build, env=wine)
