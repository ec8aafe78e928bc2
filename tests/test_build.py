"""What is built, what it needs, and that every tool sees one package."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mg2l
from mg2l import envs

pytestmark = pytest.mark.ci

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(mg2l.__file__).resolve().parent
LIBRARIES = sorted(PACKAGE.glob("_*.abi3.so"))
SIMULATORS = PACKAGE / "_simulators.abi3.so"
CUDA_LIBRARY = PACKAGE / "_C_cuda.abi3.so"


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        words, cwd=cwd, env=environment, text=True, capture_output=True, check=False
    )


def python(code: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, cwd=cwd, **variables)


def copy_sources(to: Path) -> Path:
    """The checkout without what was built in it."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "*.so", "runs", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, to, symlinks=True, ignore=ignored)
    return to


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source distribution, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    sources = copy_sources(folder / "sources")
    compiler = folder / "c++"  # without optimisation, which takes most of the time
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    done = run(
        sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check",
        "--outdir", str(folder), str(sources),
        cwd=folder, MG2L_CUDA="0", CXX=str(compiler),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


def test_a_source_distribution_is_complete(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT)
    assert tracked.returncode == 0, tracked.stderr
    files = {name for name in tracked.stdout.split() if (ROOT / name).is_file()}
    assert files - names == {".gitignore"}


def test_a_wheel_holds_every_file(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    wanted = {
        f"mg2l/configs/{p.relative_to(ROOT / 'configs')}" for p in ROOT.glob("configs/*/*.yaml")
    }
    wanted |= {
        f"mg2l/envs/{p.relative_to(ROOT / 'envs')}"
        for p in ROOT.glob("envs/**/*.py")
        if "__pycache__" not in p.parts
    }
    # rglob does not follow the links mg2l/envs and mg2l/configs, which are covered above.
    wanted |= {f"mg2l/{p.relative_to(PACKAGE)}" for p in PACKAGE.rglob("*.py")}
    wanted |= {"mg2l/py.typed", "mg2l/_C.abi3.so", "mg2l/_simulators.abi3.so"}
    wanted |= {"mg2l/report/page.css", "mg2l/report/page.js"}
    for part in ("mg2l/configs/env/", "mg2l/envs/particle/", "mg2l/ops/", "mg2l/algorithms/"):
        assert any(name.startswith(part) for name in wanted), part
    assert wanted <= names
    assert not [name for name in names if name.startswith(("envs/", "configs/", "tests/"))]


def test_one_wheel_serves_every_python(distributions: tuple[Path, Path]) -> None:
    wheel = distributions[1]
    assert re.fullmatch(r"mg2l-[\d.]+-cp310-abi3-linux_\w+\.whl", wheel.name)
    done = run(
        sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", "--report",
        str(wheel),
        cwd=wheel.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["specs"].values()
    audited = {library["name"] for library in found["wheel"]}
    assert audited == {"_C.abi3.so", "_simulators.abi3.so"}


def test_a_wheel_works_without_a_compiler(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """Trains, evaluates, compares and reports, with simulators in C++ too."""
    installed, runs = tmp_path / "installed", tmp_path / "runs"
    done = run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target",
        str(installed), str(distributions[1]),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    code = f"""
import shutil, sys
import mg2l
assert mg2l.__file__.startswith({str(installed)!r}), mg2l.__file__
assert shutil.which("c++") is None and shutil.which("g++") is None
for algo in ("mappo", "oracle"):
    for seed in (1, 2):
        mg2l.train(
            algo=algo, env="rware-layout", seed=seed, n_iters=1, n_rollout_threads=2,
            max_ep_len=5, save_model=True, main_save_path={str(runs)!r}, kernels="native",
        )
"""
    quiet = {"PATH": str(tmp_path), "PYTHONPATH": str(installed), "CXX": ""}
    done = python(code, tmp_path, **quiet)
    assert done.returncode == 0, done.stderr
    folder = next(path.parent for path in sorted(runs.rglob("metrics.jsonl")))
    for words in (
        ["evaluate", str(folder)],
        ["compare", str(runs)],
        ["report", str(runs)],
    ):
        done = run(sys.executable, "-m", f"mg2l.{words[0]}", *words[1:], cwd=tmp_path, **quiet)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_need_only_stable_symbols(library: Path) -> None:
    """No C++ symbol of torch, whose stable ABI is C; simulators have none at all."""
    done = run("nm", "-D", "--undefined-only", str(library), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    symbols = [line.split()[-1].split("@")[0] for line in done.stdout.splitlines()]
    torch_symbols = [name for name in symbols if re.match(r"(aoti_)?torch_", name)]
    assert bool(torch_symbols) == (library != SIMULATORS)
    foreign = [name for name in symbols if re.search(r"2at\d|3c10|5torch|6caffe2|^_?Py", name)]
    assert foreign == []


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without nvcc")
def test_the_cuda_library_loads_and_registers_its_kernels(tmp_path: Path) -> None:
    code = f"""
import mg2l, torch
if not torch.version.cuda:
    torch.ops.load_library({str(CUDA_LIBRARY)!r})
for op in ("mg2l::gae", "mg2l::gae_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


SPILLING = """
__global__ void __launch_bounds__(1024) bad(const float* x, float* y, int steps) {
  float lane[200];
  for (int i = 0; i < 200; ++i) lane[i] = x[i * 1024 + threadIdx.x];
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < 200; ++i) lane[i] = lane[i] * lane[(i + 7) % 200] + x[step];
#pragma unroll
  for (int i = 0; i < 200; ++i) y[i * 1024 + threadIdx.x] = lane[i];
}
"""
WARNING = "__global__ void bad(float* y) { int unused; y[0] = 1; }"


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without nvcc")
@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [(SPILLING, "spill"), (WARNING, "never referenced")],
    ids=["spill", "warning"],
)
def test_a_bad_kernel_fails_the_build(kernel: str, complaint: str, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    for good in (sources / "csrc" / "cuda").glob("*.cu"):
        good.unlink()
    (sources / "csrc" / "cuda" / "bad.cu").write_text(kernel)
    done = run(
        sys.executable, "setup.py", "build_ext", "--inplace",
        cwd=sources, MG2L_CUDA="1", MG2L_CUDA_ARCHS="90", MG2L_WERROR="1",
    )  # fmt: skip
    assert done.returncode != 0
    assert complaint in done.stdout
    assert "nvcc failed" in done.stderr


def machine_code(cubin: Path) -> dict[str, bytes]:
    """Each kernel's, of an ELF file of 64 bits."""
    file = cubin.read_bytes()
    (start,) = struct.unpack_from("<Q", file, 0x28)
    size, count, names = struct.unpack_from("<HHH", file, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", file, start + size * i) for i in range(count)]
    code = {}
    for name, _, _, _, offset, length in sections:
        begin = sections[names][4] + name
        label = file[begin : file.index(b"\0", begin)].decode()
        if label.startswith(".text."):
            code[label] = file[offset : offset + length]
    return code


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without nvcc")
def test_older_ptx_gives_the_same_machine_code(tmp_path: Path) -> None:
    rule = (ROOT / "build" / "cuda" / "build.ninja").read_text()
    made = re.findall(r"arch=compute_(\w+),code=\[([\w,]+)\]", rule)
    assert made
    nvcc = shlex.split(next(line for line in rule.splitlines() if "command = " in line))[2]

    def compiled(source: str, arch: str) -> dict[str, bytes]:
        cubin = tmp_path / f"{source}-{arch}.cubin"
        done = run(
            nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{source},code=sm_{arch}", "-cubin",
            str(ROOT / "csrc" / "cuda" / "gae.cu"), "-o", str(cubin),
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return machine_code(cubin)

    for source, codes in made:
        newest = [code.removeprefix("sm_") for code in codes.split(",") if code[:3] == "sm_"][-1]
        if newest != source:
            by_its_own = compiled(newest, newest)
            assert by_its_own
            assert compiled(source, newest) == by_its_own


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MG2L_CUDA", "yes", "MG2L_CUDA must be auto, 0 or 1, got 'yes'"),
        ("MG2L_CUDA_ARCHS", "hopper", "MG2L_CUDA_ARCHS must list compute capabilities"),
    ],
)
@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without nvcc")
def test_wrong_build_options_are_refused(variable: str, value: str, message: str) -> None:
    done = run(sys.executable, "setup.py", "--version", cwd=ROOT, **{variable: value})
    assert done.returncode != 0
    assert message in done.stderr


def test_every_folder_sees_one_package(tmp_path: Path) -> None:
    code = (
        "import sys, mg2l, mg2l.configs, mg2l.envs.registry as registry;"
        "from mg2l.config.files import load_config;"
        "print(mg2l.__file__, sys.modules['mg2l.envs'].__file__, list(mg2l.configs.__path__)[0]);"
        "print(type(load_config().env) is registry.config_class('mpe-spread'));"
        "print([name for name in sys.modules if name in ('envs', 'configs')])"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    files, same, bare = done.stdout.splitlines()
    here = [str(mg2l.__file__), str(envs.__file__), str(PACKAGE / "configs")]
    assert [Path(f).resolve() for f in files.split()] == [Path(f).resolve() for f in here]
    assert same == "True"
    assert bare == "[]"


@pytest.mark.parametrize("module", ["mg2l.info", "mg2l.train"])
def test_commands_run_from_another_folder(module: str, tmp_path: Path) -> None:
    words = [] if module == "mg2l.info" else ["--help"]
    done = run(sys.executable, "-m", module, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mpe-spread" in done.stdout or "torch" in done.stdout


def test_mypy_sees_one_package() -> None:
    """A file under two module names would be mypy's own error."""
    done = run(sys.executable, "-m", "mypy", "mg2l/envs/base.py", "mg2l/core/schema.py", cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["envs", "configs"])
def test_a_bare_import_is_a_lint_error(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mistake.py"
    file.write_text(f'"""Doc."""\n\nimport {name}\n\nprint({name})\n')
    config = str(ROOT / "pyproject.toml")
    words = ["ruff", "check", "--no-cache", "--config", config, str(file)]
    done = run(sys.executable, "-m", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "TID251" in done.stdout
    assert f"mg2l.{name}" in done.stdout


def fake_toolkit(folder: Path, codes: str) -> Path:
    """A CUDA toolkit whose nvcc only says what it knows."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\nprintf '%s\\n' {codes}\n")
    nvcc.chmod(0o755)
    return folder


def test_an_old_nvcc_drops_new_architectures_and_says_so(tmp_path: Path) -> None:
    home = str(fake_toolkit(tmp_path, "sm_75 sm_80 sm_86 sm_89 sm_90"))
    words = [sys.executable, "setup.py", "--version"]
    done = run(*words, cwd=ROOT, CUDA_HOME=home, MG2L_CUDA="1")
    assert done.returncode == 0, done.stderr
    assert "does not know compute capabilities 100 120: left out" in done.stderr
    done = run(*words, cwd=ROOT, CUDA_HOME=home, MG2L_CUDA="1", MG2L_CUDA_ARCHS="90 10.0")
    assert done.returncode != 0
    assert "MG2L_CUDA_ARCHS asks for 100, which" in done.stderr
    assert "it knows 75 80 86 89 90" in done.stderr


def test_without_a_compiler_nothing_is_compiled_and_said(tmp_path: Path) -> None:
    words = [sys.executable, "setup.py", "--version"]
    compiler = str(tmp_path / "c++")
    done = run(*words, cwd=ROOT, CXX=compiler, MG2L_CUDA="auto", MG2L_NATIVE="auto")
    assert done.returncode == 0, done.stderr
    assert "installing without compiled operators" in done.stderr
    done = run(*words, cwd=ROOT, CXX=compiler, MG2L_CUDA="auto", MG2L_NATIVE="1")
    assert done.returncode != 0
    assert f"no working C++ compiler ({compiler}" in done.stderr


def test_without_compiled_operators_everything_works_by_definition(tmp_path: Path) -> None:
    """Installed with MG2L_NATIVE=0: said once, values and gradients right, and a run trains."""
    sources = copy_sources(tmp_path / "sources")
    installed = tmp_path / "installed"
    done = run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
        "--target", str(installed), ".",
        cwd=sources, MG2L_NATIVE="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(installed.rglob("*.so"))
    code = """
import torch
from mg2l import ops
x = torch.tensor([[[1.0], [3.0]]], requires_grad=True)
pooled = ops.pia_pool(x, torch.zeros(1, 1)).pooled
pooled.sum().backward()
print(ops.__file__, pooled.item(), x.grad.ravel().tolist())
"""
    done = python(code, tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    file, *values = done.stdout.split(maxsplit=1)
    assert Path(file).is_relative_to(installed)
    assert values == ["2.0 [0.5, 0.5]\n"]
    assert done.stderr.count("installed without compiled operators") == 1
    train = [
        sys.executable, "-m", "mg2l.train", "--algo=mappo", "--env=mpe-spread", "n_iters=1",
        "n_rollout_threads=4", "max_ep_len=5", f"main_save_path={tmp_path / 'runs'}",
    ]  # fmt: skip
    done = run(*train, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("installed without compiled operators") == 1
    done = run(*train, "kernels=native", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode != 0
    assert "kernels=native, but not compiled for cpu" in done.stderr
