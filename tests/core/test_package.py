"""The package as a stranger meets it: light to import, complete, typed."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import clipproj

CORE = ("clipproj", "torch", "numpy", "safetensors")
HEAVY = (
    "open_clip",
    "transformers",
    "timm",
    "torchvision",
    "typer",
    "rich",
    "matplotlib",
    "jinja2",
)
HEAVY += ("PIL", "inflect", "pytest", "faiss", "ray")


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_import_needs_torch_numpy_and_safetensors_alone():
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
import torch  # may look for optional packages of its own
before = set(sys.modules)
import clipproj
p = clipproj.nullspace(torch.randn(1, 8), contrast="none")
p(torch.randn(2, 8))
assert "torch.distributed.tensor" not in sys.modules
print(*sorted({{m.partition(".")[0] for m in set(sys.modules) - before}} - sys.stdlib_module_names))
"""
    assert set(run(code)) <= set(CORE)


def test_public_names_exist_and_are_documented():
    for name in clipproj.__all__:
        found = getattr(clipproj, name)
        assert name.startswith("__") or found.__doc__, f"{name} has no docstring"


def test_version_is_one():
    assert clipproj.__version__ == clipproj.build_info()["version"]
    assert clipproj.__version__ == metadata.version("clipproj")


def test_typed_and_stubbed():
    folder = Path(clipproj.__file__).parent
    assert (folder / "py.typed").exists()
    assert "def build_info" in (folder / "_C.pyi").read_text()
