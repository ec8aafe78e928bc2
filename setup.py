"""Builds the kernels; everything else is in pyproject.toml.

Three libraries, none of which uses Python, so that one wheel serves every version of it:

- ``mg2l._C``: operators for the CPU, LibTorch stable ABI.
- ``mg2l._C_cuda``: the same for CUDA. nvcc sees only ``csrc/cuda/*.cu`` (no torch header), the host
  compiler only the binding, so that a CPU build of torch is enough to compile it.
- ``mg2l._simulators``: simulators of environments, plain C functions without torch.

Environment variables:

- ``MG2L_CUDA``: ``auto`` (default: build CUDA kernels when nvcc is found), ``0`` or ``1``.
- ``MG2L_CUDA_ARCHS``: compute capabilities, e.g. ``"80 90"``. PTX is kept as well, for GPUs that
  are newer. By default all that nvcc knows of those below.
- ``MG2L_NATIVE``: ``auto`` (default: compile if a C++ compiler works), ``0`` (install without
  compiled operators; everything is computed by its definition) or ``1`` (fail without a compiler).
- ``MG2L_WERROR``: ``1`` makes warnings errors (CI); newer compilers warn of more.
- ``MAX_JOBS``: files compiled at a time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import (
    BuildExtension,
    CppExtension,
    get_cxx_compiler,
    include_paths,
)

ROOT = Path(__file__).resolve().parent
CUDA_BUILD = ROOT / "build" / "cuda"
# The oldest torch that operators run with: 2.11 has tensors over memory of ours (from_blob with a
# closure), 2.13 the native handle of a CUDA stream.
STABLE_ABI, CUDA_STABLE_ABI = "0x020b000000000000", "0x020d000000000000"
SUITES = ("simulators", "particle", "warehouse", "foraging")
DEFAULT_ARCHS = "75 80 86 89 90 100 120"
WARNINGS = ["-Wall", "-Wextra"]
# The vector types of csrc/simd.h exist in inlined code only; how calls pass them does not matter.
SIMD_FLAGS = ["-Wno-psabi"]
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
# a * b + c as one instruction; not for the particle world, which must replay recorded numbers.
FUSED_FLAGS = ["-ffp-contract=fast"]
# Torch's headers are system headers: their warnings are not ours.
TORCH_HEADERS = [f"-isystem{path}" for path in include_paths()]


def sources(pattern: str) -> list[str]:
    """Files below the repository that match, relative to it (setuptools wants them so)."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def choice(variable: str, *values: str) -> str:
    """An environment variable that takes one of ``values``; the first is the default."""
    found = os.environ.get(variable, values[0])
    if found not in values:
        sys.exit(f"{variable} must be {', '.join(values[:-1])} or {values[-1]}, got {found!r}")
    return found


def compiles_natively() -> bool:
    """Whether to compile anything: a C++ compiler works and MG2L_NATIVE does not forbid it."""
    wanted = choice("MG2L_NATIVE", "auto", "0", "1")
    if wanted == "0":
        return False
    compiler = get_cxx_compiler()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "works.cpp"
        source.write_text("#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n")
        command = [*shlex.split(compiler), "-std=c++17", str(source), "-o", f"{source}.out"]
        try:
            done = subprocess.run(command, text=True, capture_output=True, check=False)
            error = done.stderr.strip() if done.returncode else ""
        except OSError as problem:
            error = str(problem)
    if not error:
        return True
    reason = f"no working C++ compiler ({compiler}: {error.splitlines()[0]})"
    if wanted == "1" or choice("MG2L_CUDA", "auto", "0", "1") == "1":
        sys.exit(f"mg2l: {reason}, but MG2L_NATIVE=1 or MG2L_CUDA=1 asks for compiled operators")
    print(f"mg2l: {reason}: installing without compiled operators, slower", file=sys.stderr)
    return False


def find_cuda() -> Path | None:
    """The CUDA toolkit to build with, or None.

    Under a CPU build of torch ``torch.utils.cpp_extension.CUDA_HOME`` is None, hence this search.
    """
    wanted = choice("MG2L_CUDA", "auto", "0", "1")
    if wanted == "0":
        return None
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    for root in candidates:
        if root and (Path(root) / "bin" / "nvcc").exists():
            return Path(root)
    if wanted == "1":
        sys.exit("MG2L_CUDA=1 but nvcc was not found; set CUDA_HOME to the CUDA toolkit")
    return None


@cache
def cuda_archs(cuda: Path) -> list[str]:
    """Compute capabilities as nvcc writes them: ``8.0`` and ``80`` both give ``80``.

    Of the default those that this nvcc does not know are left out, and a line says so.
    """
    text = os.environ.get("MG2L_CUDA_ARCHS", DEFAULT_ARCHS)
    archs = text.replace(",", " ").replace(";", " ").replace(".", "").split()
    if not archs or not all(arch.rstrip("af").isdigit() for arch in archs):
        sys.exit(f"MG2L_CUDA_ARCHS must list compute capabilities such as '80 90', got {text!r}")
    nvcc = cuda / "bin" / "nvcc"
    listed = subprocess.run(
        [str(nvcc), "--list-gpu-code"], text=True, capture_output=True, check=False
    )
    known = [word.removeprefix("sm_") for word in listed.stdout.split() if word.startswith("sm_")]
    if listed.returncode or not known:
        sys.exit(f"{nvcc} --list-gpu-code failed: CUDA 11.5 or newer is needed")
    # sm_90a and sm_100f are variants that nvcc does not always list.
    unknown = [arch for arch in archs if arch not in known and arch.rstrip("af") not in known]
    if unknown and "MG2L_CUDA_ARCHS" in os.environ:
        sys.exit(
            f"MG2L_CUDA_ARCHS asks for {' '.join(unknown)}, which {nvcc} does not know; "
            f"it knows {' '.join(known)}"
        )
    archs = [arch for arch in archs if arch not in unknown]
    if not archs:
        sys.exit(f"{nvcc} knows none of {DEFAULT_ARCHS}, only {' '.join(known)}")
    if unknown:
        print(
            f"mg2l: {nvcc} does not know compute capabilities {' '.join(unknown)}: left out",
            file=sys.stderr,
        )
    return archs


def targets(archs: list[str]) -> list[str]:
    """What nvcc compiles for: machine code of each, and the PTX that the last is made from.

    All below 10.0 are made from the PTX of the oldest of them, and all others from the oldest of
    these, in two thirds of the time. That is, byte for byte, the code that each makes of its own
    PTX (``tests/test_build.py``), as no kernel asks which it is compiled for. Variants such as
    ``90a`` stand alone.
    """
    families: dict[str, list[str]] = {}
    for arch in archs:
        family = ("before 10.0" if int(arch) < 100 else "since") if arch.isdigit() else arch
        families.setdefault(family, []).append(arch)
    flags = []
    for members in families.values():
        source = f"compute_{min(members, key=lambda arch: int(arch.rstrip('af')))}"
        codes = [f"sm_{arch}" for arch in members]
        codes += [source] if archs[-1] in members else []
        flags.append(f"-gencode=arch={source},code=[{','.join(codes)}]")
    return flags


def nvcc_flags(archs: list[str]) -> list[str]:
    """Warns of register spills too."""
    return [
        "-std=c++17",
        "-O3",
        "--threads=2",
        *targets(archs),
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
        "-Xptxas=-v,--warn-on-spills",
        *(["-Werror=all-warnings"] if WERROR else []),
    ]


def compile_cuda(cuda: Path, archs: list[str]) -> list[str]:
    """Compile ``csrc/cuda/*.cu`` with nvcc and return the objects.

    What ptxas says of each kernel (registers, shared memory, stack, spills) stays beside the
    objects, in ``build/cuda/<name>.log``.
    """
    CUDA_BUILD.mkdir(parents=True, exist_ok=True)
    rules = [
        "ninja_required_version = 1.5",
        "rule nvcc",
        f"  command = {shlex.quote(str(cuda / 'bin' / 'nvcc'))} {shlex.join(nvcc_flags(archs))}"
        " -MD -MF $out.d -c $in -o $out > $log 2>&1 || (cat $log; rm -f $out; exit 1)",
        "  depfile = $out.d",
        "  description = nvcc $in",
    ]
    objects = []
    for source in sources("csrc/cuda/*.cu"):
        stem = Path(source).stem
        rules += [f"build {stem}.o: nvcc {ROOT / source}", f"  log = {stem}.log"]
        objects.append(str(CUDA_BUILD / f"{stem}.o"))
    (CUDA_BUILD / "build.ninja").write_text("\n".join(rules) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    ninja = [sys.executable, "-m", "ninja", "-C", str(CUDA_BUILD), *jobs]
    if subprocess.run(ninja, check=False).returncode:
        sys.exit("nvcc failed (see above)")
    return objects


class Build(BuildExtension):
    """Torch's ninja build, preceded by nvcc for the CUDA library."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "mg2l._C_cuda":
            assert CUDA is not None
            ext.extra_objects = compile_cuda(CUDA, cuda_archs(CUDA))
        super().build_extension(ext)


def torch_library(name: str, files: list[str], abi: str, **options: object) -> Extension:
    """An operator library on the stable ABI: no Python, no C++ symbol of torch."""
    macros: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", abi)]
    macros += options.pop("define_macros", [])  # type: ignore[arg-type]
    extension: Extension = CppExtension(
        name,
        files,
        py_limited_api=True,
        define_macros=macros,
        extra_compile_args=[*CXX_FLAGS, *FUSED_FLAGS, *WARNINGS, *SIMD_FLAGS, *TORCH_HEADERS],
        depends=sources("csrc/*.h"),
        **options,
    )
    return extension


WERROR = choice("MG2L_WERROR", "0", "1") == "1"
if WERROR:
    WARNINGS.append("-Werror")
NATIVE = compiles_natively()
CUDA = find_cuda() if NATIVE else None
extensions = [torch_library("mg2l._C", sources("csrc/*.cpp"), STABLE_ABI)] if NATIVE else []
if CUDA and sources("csrc/cuda/*.cu"):
    extensions.insert(  # first, since a kernel that nvcc refuses is known soonest
        0,
        torch_library(
            "mg2l._C_cuda",
            sources("csrc/cuda/*.cpp"),
            CUDA_STABLE_ABI,
            define_macros=[("MG2L_CUDA_ARCHS", f'"{" ".join(cuda_archs(CUDA))}"')],
            library_dirs=[str(CUDA / "lib64")],
            # Static, so that the toolkit that built it need not be the one torch runs with.
            libraries=["cudart_static", "dl", "rt", "pthread"],
            extra_link_args=["-Wl,-z,defs", "-Wl,--exclude-libs,ALL"],
        ),
    )


if NATIVE:
    extensions.append(
        Extension(
            "mg2l._simulators",
            [path for suite in SUITES for path in sources(f"csrc/{suite}/*.cpp")],
            extra_compile_args=[*CXX_FLAGS, *WARNINGS, *SIMD_FLAGS],
            depends=[path for where in ("cuda", *SUITES) for path in sources(f"csrc/{where}/*.h")],
            language="c++",
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
