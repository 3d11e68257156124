"""The structure: imports go down only, the command line starts fast, tests are no package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"infra": 0, "models": 1, "ray_jobs": 2, "serve": 2}
# Floors whose modules may import Ray.
RAY_FLOOR = 2


def imported_modules(source: str) -> set[str]:
    """Every module that the source imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            found.add(node.module or "")
    return found


def climbing(package: str, source: str) -> set[str]:
    """The imports of a module of ``package`` that climb a floor, cross to its neighbour, or bring Ray too low."""
    bad = set()
    for module in imported_modules(source):
        top = module.split(".")[0]
        if top in FLOORS and top != package and FLOORS[top] >= FLOORS[package]:
            bad.add(module)
        if top == "ray" and FLOORS[package] < RAY_FLOOR:
            bad.add(module)
        if top in ("tests", "benchmarks"):
            bad.add(module)
    return bad


def modules() -> list[Path]:
    return [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert climbing(package, path.read_text()) == set()


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("infra", "from models.scorer import Scorer"),
        ("models", "import ray"),
        ("models", "def f():\n    from ray_jobs import plan"),
        ("serve", "import ray_jobs.plan"),
        ("ray_jobs", "from serve import app"),
        ("ray_jobs", "import tests.unit"),
    ],
)
def test_a_climbing_import_is_found(package: str, source: str) -> None:
    assert climbing(package, source)


LIGHT_VERBS = (
    "prepare",
    "train",
    "promote",
    "rollback",
    "models",
    "plan",
    "score",
    "report",
    "drift",
    "submit",
    "doctor",
    "demo",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['ray_jobs', '--help']\n"
        "try: runpy.run_module('ray_jobs', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'av', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for verb in LIGHT_VERBS:
        assert verb in result.stdout


@pytest.mark.parametrize("verb", LIGHT_VERBS)
def test_help_of_each_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['ray_jobs', '{verb}', '--help']\n"
        "try: runpy.run_module('ray_jobs', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'av'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_tests_are_no_package() -> None:
    # tests/serve/__init__.py would shadow the package serve.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_a_job_upload_keeps_the_packages() -> None:
    # Ray's upload follows these files; an unanchored `models/` would leave out the package of that name.
    for name in (".gitignore", ".rayignore"):
        patterns = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        folders = [pattern for pattern in patterns if pattern.endswith("/")]
        assert all(pattern.startswith("/") or pattern == "__pycache__/" for pattern in folders), folders
