"""The image, as far as it can be checked without an engine: lint, what it copies, and its steps run in a folder.

Not run here: the installation of the real lock (gigabytes; `make setup` does the same from the same file), and the two
commands that make a user, which need root and would change this machine. They are only looked at.
"""

import base64
import hashlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from ray_jobs.diagnosing.judging import judge_packages, read_pins
from ray_jobs.diagnosing.node import Gpus
from tests.unit.test_doctor import FACTS

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
BIN = Path(sys.executable).parent
SITE = f"lib/python{sysconfig.get_python_version()}/site-packages"


def steps(instruction: str) -> list[str]:
    parser = DockerfileParser(fileobj=DOCKERFILE.open("rb"))
    return [step["value"] for step in parser.structure if step["instruction"] == instruction]


def run_step(containing: str) -> str:
    (step,) = {step for step in steps("RUN") if containing in step}
    return re.sub(r"--mount=\S+ ", "", step)


def left_out() -> list[str]:
    """The packages that the CPU target takes away again."""
    words = shlex.split(run_step("uninstall"))
    return words[words.index("--yes") + 1 : words.index("&&")]


def test_lint() -> None:
    command = [str(BIN / "hadolint"), "--failure-threshold", "info", str(DOCKERFILE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_both_targets_end_without_rights_and_differ_only_in_packages() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    targets = {stage.split("\n")[0].split(" AS ")[1]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        assert targets[target].rstrip().split("\n# ---")[0].rstrip().endswith("USER 10001:10001")
        assert targets[target].startswith("runtime AS")
    assert "HEALTHCHECK" in targets["runtime"]
    assert {"title", "description", "licenses", "version", "revision"} <= set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", targets["runtime"] + targets["cpu"])
    )
    assert targets["packages"].count("requirements.lock") == 2
    assert "packages AS" in targets["packages-cpu"]


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sources = {word for step in steps("COPY") if "--from" not in step for word in shlex.split(step)[:-1]}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignore, f"{source} does not reach the build"
    assert "*" in ignore
    copied = [shlex.split(step)[-1] for step in steps("COPY")]
    for name in ("infra", "models", "ray_jobs", "serve", "requirements.lock"):  # the doctor compares with the lock
        assert copied.count(f"/app/{name}") == 2, f"{name}: once a target"


def test_the_commands_of_the_image_parse() -> None:
    from tests.command_lines import parse

    *_, command = [step for step in steps("CMD") if "serve" in step]
    words = [word.strip('", ') for word in command.strip("[]").split(",")]
    assert words[:3] == ["python", "-m", "serve"]
    parse(words)
    check = next(step for step in steps("HEALTHCHECK"))
    code = re.search(r'"-c", "(.*)"\]', check)
    assert code is not None
    compile(code[1], "healthcheck", "exec")
    assert "http://127.0.0.1:8000/healthz" in check


# --- the steps, run in a folder ---


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """A wheel of a few files; returns its line in a lock."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_wheel, text in files.items():
            archive.writestr(name_in_wheel, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Build:
    """A build's file system below a folder: absolute paths of the steps lead there, packages are a few small wheels."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        self.wheels = folder / "wheels"
        (folder / "build").mkdir()
        (folder / "etc" / "profile.d").mkdir(parents=True)
        self.wheels.mkdir()
        nms = "class ops:\n    nms = staticmethod(lambda *_: None)\n"
        torch = "eye = ones = lambda *_: None\n"
        lines = [
            wheel(self.wheels, "torch", "1", {"torch/__init__.py": torch}),
            wheel(self.wheels, "torchvision", "1", {"torchvision/__init__.py": nms}),
            wheel(self.wheels, "nvidia-cublas", "1", {"nvidia/cu13/lib/libcublas.so": "x"}),
            wheel(self.wheels, "ray", "1", {"ray/__init__.py": ""}),
        ]
        for name in left_out():
            path = "triton/__init__.py" if name == "triton" else f"nvidia/cu13/lib/{name}.so"
            lines.append(wheel(self.wheels, name, "1", {path: "x"}))
        (folder / "build" / "requirements.lock").write_text("".join(lines))
        script = DOCKERFILE.with_name("split-layers.sh")
        (folder / "build" / script.name).write_bytes(script.read_bytes())

    def run(self, step: str) -> subprocess.CompletedProcess[str]:
        for path in ("/opt/", "/layers", "/etc/"):
            step = re.sub(rf"(?<=[\s>\"]){path}", f"{self.folder}{path}", step)
        env = os.environ | {
            "PATH": f"{self.base}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CACHE_DIR": str(self.folder / "cache"),
        }
        return subprocess.run(
            ["/bin/sh", "-c", step],
            cwd=self.folder / "build",
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with pip, as the base image has it; the folder of its commands."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin"


@pytest.fixture
def build(tmp_path: Path, base: Path) -> Build:
    return Build(tmp_path, base)


def test_packages_are_installed_and_split(build: Build) -> None:
    for containing in ("--require-hashes", "uninstall", "split-layers.sh"):
        result = build.run(run_step(containing))
        assert result.returncode == 0, f"{containing}: {result.stdout}{result.stderr}"
    layers = build.folder / "layers"
    found = {
        name: {str(path.relative_to(layers / name / SITE)) for path in (layers / name / SITE).rglob("*.*")}
        for name in ("cuda", "torch")
    }
    assert found["cuda"] == {"nvidia/cu13/lib/libcublas.so"}  # what is left out is gone
    assert {path.split("/")[0] for path in found["torch"]} == {"torch", "torchvision"}
    assert (layers / "rest" / SITE / "ray").is_dir()
    assert (layers / "rest" / "bin" / "python").exists()
    assert not (build.folder / "opt" / "venv").exists()


def test_a_package_with_another_hash_is_refused(build: Build) -> None:
    lock = build.folder / "build" / "requirements.lock"
    lock.write_text(re.sub(r"(?m)(^torch==1 --hash=sha256:)\w{4}", r"\g<1>0000", lock.read_text()))
    result = build.run(run_step("--require-hashes"))
    assert result.returncode != 0
    assert "DO NOT MATCH" in result.stdout + result.stderr


def test_a_login_shell_finds_the_packages(build: Build) -> None:
    step = run_step("useradd")
    made, written = step.split("&& echo")
    assert "--uid 10001" in made
    assert build.run(f"echo{written}").returncode == 0
    profile = build.folder / "etc" / "profile.d" / "facereel.sh"
    command = ["/bin/sh", "-c", f'PATH=/usr/bin; . {profile}; echo "$PATH"']
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True)
        .stdout.strip()
        .endswith("/opt/venv/bin:/usr/bin")
    )


# --- what the CPU target leaves out ---


def closure(name: str, found: dict[str, Distribution]) -> None:
    """A package and what it needs, as far as it is installed."""
    if name in found:
        return
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:
        return
    for line in found[name].requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name.lower().replace("_", "-"), found)


def test_left_out_packages_are_of_the_lock() -> None:
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    assert set(left_out()) <= locked


def test_the_doctor_misses_nothing_that_the_cpu_target_leaves_out() -> None:
    pins = read_pins((ROOT / "requirements.lock").read_text())
    found = {name: None if name in left_out() else version.partition("+")[0] for name, version in pins.items()}
    facts = replace(FACTS, packages=found, gpus=Gpus(torch_cuda="13.0"))
    assert judge_packages(facts, pins).level == "ok"


def test_a_scorer_predicts_without_what_the_cpu_target_leaves_out(tmp_path: Path) -> None:
    # All that torch and the face detector need, file by file, but for what is left out.
    found: dict[str, Distribution] = {}
    cuda = {name for one in distributions() if (name := one.metadata["Name"].lower()).startswith(("nvidia-", "cuda-"))}
    for name in ("torch", "torchvision", "facenet-pytorch", "setuptools", *cuda):
        closure(name, found)
    assert set(left_out()) & found.keys(), "nothing that is left out is installed here: the test would show nothing"
    for name in found.keys() - set(left_out()):
        for file in found[name].files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = tmp_path / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.symlink_to(found[name].locate_file(file))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, torchvision, importlib.util\n"
        "from facenet_pytorch import MTCNN\n"
        "network = torchvision.models.resnet18().eval()\n"
        "with torch.inference_mode():\n"
        "    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 1000)\n"
        "    MTCNN(keep_all=True).detect(torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy())\n"
        "network.train()(torch.rand(2, 3, 64, 64)).sum().backward()\n"
        "assert importlib.util.find_spec('triton') is None\n"
        "print(torch.__file__)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))
