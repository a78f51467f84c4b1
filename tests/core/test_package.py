"""The package as a stranger meets it: light to import, complete, typed."""

import ast
import json
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import clipproj

LINES_AT_MOST = 7500
ROOMS = {"bank", "editing", "models", "ops"}  # folders that `import clipproj` may read from
LATER = (
    "audit", "certificates", "cli", "compare", "demo", "methods", "plugins", "recipe", "report",
    "serve",
)  # fmt: skip


def run(code):
    """What the code prints in an interpreter of its own, read as JSON."""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(made.stdout)


def test_import_is_light():
    found = run("""
import json, sys, time
import numpy, safetensors.torch, torch
before, start = set(sys.modules), time.perf_counter()
import clipproj
seconds = time.perf_counter() - start
new = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "new": new}))
""")
    ours = {name: file for name, file in found["new"].items() if name.split(".")[0] == "clipproj"}
    lines = sum(len(Path(f).read_text().splitlines()) for f in ours.values() if f.endswith(".py"))
    told = (
        f"{len(ours)} modules, {lines} lines, {found['seconds']:.2f} s over torch: {sorted(ours)}"
    )
    print(told)
    folders = {parts[1] for name in ours if len(parts := name.split(".")) > 2}
    assert folders <= ROOMS, sorted(ours)
    assert not {f"clipproj.{name}" for name in LATER} & ours.keys(), sorted(ours)
    assert lines <= LINES_AT_MOST, told
    others = {name.split(".")[0] for name in found["new"].keys() - ours.keys()}
    assert others <= sys.stdlib_module_names, others - sys.stdlib_module_names


def test_methods_need_torch_numpy_and_safetensors_alone():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(name + " must not be needed")
import torch, numpy, safetensors.torch  # may look for optional packages of their own
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names | {"clipproj"}
sys.meta_path.insert(0, Refuse())
import clipproj
p = clipproj.nullspace(torch.randn(1, 8), contrast="none")
p(torch.randn(2, 8))
print(int("torch.distributed.tensor" in sys.modules))
"""
    assert run(code) == 0


def test_names_that_are_loaded_later_are_found():
    found = run("""
import json, pickle, sys
import clipproj
before = {name for name in ("clipproj.audit", "clipproj.methods") if name in sys.modules}
listed = set(dir(clipproj))  # what completes names in a shell
from clipproj import nullspace
same = nullspace is clipproj.methods.nullspace is clipproj.nullspace
again = pickle.loads(pickle.dumps(nullspace)) is nullspace
print(json.dumps({
    "before": sorted(before),
    "unlisted": sorted(set(clipproj.__all__) - listed),
    "same": same and again,
    "modules": [clipproj.audit.__name__, clipproj.methods.__name__, clipproj.reference.__name__],
    "unknown": hasattr(clipproj, "nullspaces"),
}))
""")
    assert found == {
        "before": [],
        "unlisted": [],
        "same": True,
        "modules": ["clipproj.audit", "clipproj.methods", "clipproj.reference"],
        "unknown": False,
    }


def test_threads_may_ask_at_once_for_names_that_are_loaded_later():
    found = run("""
import json, sys, threading
sys.setswitchinterval(1e-6)
import clipproj
names = [*clipproj._HOMES, *clipproj._MODULES]
start, failed = threading.Barrier(len(names)), []
def ask(name):
    start.wait()
    try:
        getattr(clipproj, name)
    except BaseException as error:
        failed.append([name, repr(error)])
threads = [threading.Thread(target=ask, args=[name]) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(failed))
""")
    assert found == []


def test_type_checkers_are_told_of_the_same_names():
    tree = ast.parse(Path(clipproj.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {name.name: node.module for node in block.body for name in node.names}
    modules = {name for name, home in homes.items() if home == "clipproj"}
    assert modules == set(clipproj._MODULES)
    assert {name: homes[name] for name in homes.keys() - modules} == clipproj._HOMES
    assert homes.keys() <= set(clipproj.__all__)


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


def test_a_class_has_a_name_of_its_own() -> None:
    package = Path(clipproj.__file__).parent
    names = Counter(
        node.name
        for path in package.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
