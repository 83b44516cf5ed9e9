"""The file as a text: its contents, its size, its comments, and what it must not contain."""
import ast
import builtins
import dataclasses
import io
import re
import subprocess
import sys
import tokenize

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hjepa
from conftest import ROOT

TEXT = (ROOT / "hjepa.py").read_text()
LINES = TEXT.splitlines()
TREE = ast.parse(TEXT)
FUNCTION = ast.FunctionDef, ast.AsyncFunctionDef


def test_contents_equal_the_banners():
    contents = re.search(r"\nCONTENTS\n(.*?)\n\n", ast.get_docstring(TREE), re.S)[1]
    promised = re.findall(r"^ +(\d+\. .+)$", contents, re.M)
    found = [(i, line[2:]) for i, line in enumerate(LINES) if re.match(r"# \d+\. [A-Z ]+ - ", line)]
    assert [text for _, text in found] == promised
    assert [int(text.split(".")[0]) for text in promised] == list(range(1, len(promised) + 1))
    for i, _ in found:
        assert LINES[i - 1] == "" and re.fullmatch("#{99}", LINES[i + 1])


def test_size():
    assert len(LINES) <= 1300
    assert [i for i, line in enumerate(LINES, 1) if len(line) > 100] == []
    assert "\t" not in TEXT and not re.search(r" +$", TEXT, re.M) and TEXT.endswith("\n")


def test_no_function_is_long():
    for node in ast.walk(TREE):
        if isinstance(node, FUNCTION):
            length = node.end_lineno - node.lineno + 1
            assert length <= (110 if node.name == "train" else 60), f"{node.name}: {length} lines"


def public(body, prefix=""):
    """Names of undocumented public functions, classes and methods."""
    for node in body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, node.name + ".")


def test_everything_public_is_documented():
    """A method that overrides one of its base (forward, error) is documented by its class."""
    missing = []
    for name, doc in public(TREE.body):
        owner, _, method = name.rpartition(".")
        bases = getattr(hjepa, owner).__mro__[1:] if owner else ()
        if not doc and not any(hasattr(base, method) for base in bases):
            missing.append(name)
    assert missing == []


def test_share_of_explanation():
    """Comments and docstrings are a good third of the file: neither bare nor buried."""
    explained = set()
    for node in ast.walk(TREE):
        if isinstance(node, (*FUNCTION, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            explained.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(TEXT).readline):
        if token.type == tokenize.COMMENT:
            explained.add(token.start[0])
    filled = {i for i, line in enumerate(LINES, 1) if line.strip()}
    share = len(explained & filled) / len(filled)
    assert 0.29 <= share <= 0.36, f"{share:.3f}"


def test_imports():
    """Only the standard library, torch, numpy and matplotlib; matplotlib where it is needed."""
    def modules(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                yield node.module.split(".")[0]
    everywhere = set(modules(ast.walk(TREE)))
    assert everywhere - set(sys.stdlib_module_names) == {"torch", "numpy", "matplotlib"}
    assert "matplotlib" not in set(modules(TREE.body))
    assert not everywhere & {"pickle", "subprocess", "urllib", "socket", "random"}


def test_every_setting_is_read():
    """A setting nobody reads is a promise nobody keeps."""
    read = {node.attr for top in TREE.body if getattr(top, "name", "") != "Config"
            for node in ast.walk(top) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in ("config", "c")}
    assert {f.name for f in dataclasses.fields(hjepa.Config)} - read == set()


def test_every_setting_has_source_meaning_and_a_valid_default():
    for f in dataclasses.fields(hjepa.Config):
        assert f.metadata["source"] in ("paper", "vicreg", "design", "tuned"), f.name
        assert f.metadata["meaning"]
    for preset in hjepa.PRESETS.values():
        hjepa.Config(**preset)


def test_import_has_no_side_effects():
    code = ("import sys, torch; torch.manual_seed(1); before = torch.get_rng_state(); "
            "dtype, threads = torch.get_default_dtype(), torch.get_num_threads(); import hjepa; "
            "assert torch.equal(before, torch.get_rng_state()); "
            "assert (dtype, threads) == (torch.get_default_dtype(), torch.get_num_threads()); "
            "assert not any(m.startswith('matplotlib') for m in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_compiles_without_a_warning(tmp_path):
    command = [sys.executable, "-X", f"pycache_prefix={tmp_path}", "-W", "error", "-m",
               "py_compile", "hjepa.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_dangerous_or_left_over():
    assert not re.search(r"\.cuda\(|(?<![\w.])(eval|exec)\(|\bpickle\b", TEXT)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", TEXT)
    loads = [node for node in ast.walk(TREE) if isinstance(node, ast.Call)
             and ast.unparse(node.func) == "torch.load"]
    assert loads
    for call in loads:
        assert "weights_only=True" in [ast.unparse(k) for k in call.keywords]


def test_no_name_hides_a_builtin_or_goes_unused():
    """Module-level names: none shadows a builtin, and each function and class has a caller."""
    names = [n.name for n in TREE.body if isinstance(n, (*FUNCTION, ast.ClassDef))]
    assert len(names) == len(set(names)) and not set(names) & set(dir(builtins))
    used = {n.id for n in ast.walk(TREE) if isinstance(n, ast.Name)}
    assert [name for name in names if name not in used] == []


class NoDouble(TorchDispatchMode):
    """Fails at the first operation that makes a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                assert x.dtype not in (torch.float64, torch.complex128), f"{func} made float64"
        return out


def test_no_float64_in_training_and_planning():
    """MPS has no float64, and on a GPU it is slow: the whole path stays in float32."""
    with NoDouble(), pytest.raises(AssertionError, match="float64"):
        torch.zeros(2).double()                                           # the guard works
    config = hjepa.Config(sequences=128, batch=64, latent=16, width=16, short_width=16,
                          macro_width=16, samples=8, elites=3, iterations=2, precision="fp32")
    device, gens = torch.device("cpu"), [hjepa.generator(0, "test", i) for i in range(2)]
    with NoDouble():
        world = hjepa.build_world(config)
        states, forces, _ = hjepa.sequences(world, config, 128, 0, "train", device)
        model = hjepa.build(config)
        optimizer = hjepa.make_optimizer(model, config, device)
        data = world.observe(states), forces
        hjepa.train_epoch(model, optimizer, data, config, 0, device, "fp32")
        tasks = hjepa.make_tasks(world, 2, config.steps, gens[0])
        for planner in hjepa.PLANNERS:
            hjepa.solve(planner, model, world, config, tasks["clip"], tasks["goal"], gens)
