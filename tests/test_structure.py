"""The file as a text: contents, order, comments, settings, and what it must not do."""
import ast
import builtins
import dataclasses
import errno
import fcntl
import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tokenize

import pytest

import hjepa
from conftest import ROOT

TEXT = (ROOT / "hjepa.py").read_text()
LINES = TEXT.splitlines()
TREE = ast.parse(TEXT)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
APPENDIX = LINES.index("# APPENDIX - what makes a run survive") + 1       # line number
TUTORIAL_END = next(i for i, line in enumerate(LINES, 1) if line.startswith("# The tutorial ends"))


# Contents

def test_contents_equal_the_banners():
    contents = re.search(r"\nCONTENTS\n(.*?)\n\n", ast.get_docstring(TREE), re.S)[1]
    promised = [line.strip() for line in contents.splitlines()]
    banners = []
    for i, line in enumerate(LINES):
        if re.match(r"# (\d+\. [A-Z ]+|APPENDIX) - ", line):
            banners.append(line[2:])
            assert LINES[i - 2:i] == ["", ""]
            assert re.fullmatch("#{99}", LINES[i + 1])
    assert banners == promised
    numbers = [int(text.split(".")[0]) for text in promised[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert promised[-1].startswith("APPENDIX")


def test_text_is_plain():
    assert "\t" not in TEXT
    assert not re.search(r" +$", TEXT, re.M)
    assert TEXT.endswith("\n")
    assert TEXT.isascii()


# Order

def defined_names(node):
    """Names that a statement at module level binds."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def names_used_too_early(text, appendix):
    """(line, name): names of module level that are read above the line that defines them. Those
    that are defined below the line `appendix` may be read anywhere."""
    tree = ast.parse(text)
    defined = {}
    for node in tree.body:
        for name in defined_names(node):
            defined[name] = node.lineno
    early = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            line = defined.get(node.id, 0)
            if node.lineno < line < appendix:
                early.append((node.lineno, node.id))
    return early


def test_names_are_defined_above_where_they_are_used():
    """A reader who goes from top to bottom meets nothing unknown, but for the appendix."""
    assert names_used_too_early(TEXT, APPENDIX) == []


def test_a_name_that_is_used_too_early_is_noticed():
    """The guard itself."""
    text = ("def f():\n    return g() + h()\n\n\n"
            "def g():\n    return 1\n\n\n"
            "def h():\n    return 2\n")
    assert names_used_too_early(text, appendix=99) == [(2, "g"), (2, "h")]
    assert names_used_too_early(text, appendix=8) == [(2, "g")]


def test_the_tutorial_uses_nothing_of_the_appendix():
    """Sections 1 to 5 are complete without it."""
    below = set()
    for node in TREE.body:
        if node.lineno > APPENDIX:
            below.update(defined_names(node))
    used = {node.id for top in TREE.body if top.lineno < TUTORIAL_END
            for node in ast.walk(top) if isinstance(node, ast.Name)}
    assert not used & below


def test_no_name_hides_a_builtin_or_goes_unused():
    """Names of module level: each is defined once and used somewhere."""
    names = [name for node in TREE.body for name in defined_names(node)]
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated <= {"torch"}                # import torch, torch.nn, torch.nn.functional
    assert not set(names) & set(dir(builtins))
    used = {node.id for node in ast.walk(TREE)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unused = set(names) - used
    # For those who import the file: weights from a file, and to one.
    assert unused == {"load", "save"}


# Docstrings

def documented(body, prefix="", inherited=""):
    """Yields name, node, docstring of public functions, classes and methods. A method without one
    is documented by its class."""
    for node in body:
        if not isinstance(node, (*FUNCTION, ast.ClassDef)) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node) or ""
        yield prefix + node.name, node, docstring or inherited
        if isinstance(node, ast.ClassDef):
            yield from documented(node.body, node.name + ".", docstring)


def overrides(name):
    """Whether Class.method is a method of a base of Class."""
    owner, _, method = name.rpartition(".")
    return bool(owner) and any(hasattr(base, method) for base in getattr(hjepa, owner).__mro__[1:])


def test_everything_public_is_documented():
    """A method that overrides one of its base (forward, error) is documented by its class."""
    missing = []
    for name, node, _ in documented(TREE.body):
        if not ast.get_docstring(node) and not overrides(name):
            missing.append(name)
    assert missing == []


# Names of arguments that are tensors or dicts of tensors, in the tutorial and in the evaluation.
TENSORS = {"a", "b", "clip", "code", "cost", "errors", "flip", "forces", "goal", "guess", "mean",
           "obs", "other", "other_cost", "outcomes", "plan", "plans", "start", "state", "states",
           "std", "swap", "tokens", "training", "true", "validation", "x", "y", "z", "z1", "z2"}
SHAPE = r"\((?:[A-Za-z]|\.\.\.|bodies)(?:,[^()]*)?\)"


def test_tensors_are_documented_by_their_shapes():
    """Each argument that is a tensor brings a shape, as (N, T, W), into the docstring of its
    function or class. Or the docstring says: as in another one, which it names."""
    bare = []
    for name, node, docstring in documented(TREE.body):
        if not isinstance(node, FUNCTION) or not TUTORIAL_START <= node.lineno < EVALUATION_END:
            continue
        arguments = {argument.arg for argument in node.args.args + node.args.kwonlyargs}
        explained = re.search(SHAPE, docstring) or re.search(r"as in `\w+`", docstring)
        if arguments & TENSORS and not explained:
            bare.append(name)
    assert bare == []


def line_of(banner):
    return next(i for i, line in enumerate(LINES, 1) if line.startswith(f"# {banner}"))


TUTORIAL_START = line_of("1. WORLD")
EVALUATION_END = line_of("8. TRAINING")


def test_units_are_named_where_they_are_chosen():
    """Of the world's settings: lengths, times, masses."""
    assert "half box widths" in hjepa.World.__doc__
    assert "seconds" in hjepa.World.__doc__
    meaning = {field.name: field.metadata["meaning"] for field in dataclasses.fields(hjepa.Config)}
    assert "seconds" in meaning["dt"]
    assert "the box is 2 wide" in meaning["radius"]


# Comments

CONNECTING = ("a an the and or but of to in on at by for from with without as than that which who "
              "whose is are was be if when where because so not no its their").split()


def comments(text):
    """-> dict line -> (column, comment without #, whether code stands before it)."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            code = token.line[:token.start[1]].strip() != ""
            found[token.start[0]] = token.start[1], token.string.lstrip("# "), code
    return found


def comments_that_run_on(text):
    """Lines whose trailing comment goes on in the next line, as far as a program can see it: it
    ends in a connecting word, a comma, a dash, or inside of brackets; or a comment in the next line
    goes on with one."""
    found = comments(text)
    lines = []
    for line, (column, comment, trailing) in found.items():
        if not trailing or comment.startswith("noqa"):
            continue
        last = comment.split()[-1]
        after = found.get(line + 1)
        unfinished = last in CONNECTING or last[-1] in ",;:-"
        unbalanced = any(comment.count(a) != comment.count(b) for a, b in ("()", "[]"))
        goes_on = False
        if after:
            after_column, after_comment, after_trailing = after
            first = after_comment.split()[0]
            same_column = after_column == column and not after_trailing
            goes_on = same_column or after_trailing and first in ("and", "or", "but", "which")
        if unfinished or unbalanced or goes_on:
            lines.append(line)
    return lines


def test_no_trailing_comment_runs_on_over_the_next_line():
    assert comments_that_run_on(TEXT) == []


@pytest.mark.parametrize("text", ["x = 1      # the number of\ny = 2      # worlds\n",
                                  "x = 1      # one world,\ny = 2\n",
                                  "x = 1      # one world (of\ny = 2      # many)\n",
                                  "x = 1      # one world\n           # of many\n",
                                  "x = 1      # one world\ny = 2      # and many more\n"])
def test_a_comment_that_runs_on_is_noticed(text):
    """The guard itself."""
    assert comments_that_run_on(text)[0] == 1


def test_complete_comments_are_left_alone():
    text = ("# On a line of its own,\n# over two lines.\n"
            "x = 1      # one\ny = 2      # another one\n")
    assert comments_that_run_on(text) == []


def test_nothing_dangerous_or_left_over():
    assert not re.search(r"\.cuda\(|(?<![\w.])(eval|exec)\(|\bpickle\b", TEXT)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", TEXT)
    loads = [node for node in ast.walk(TREE) if isinstance(node, ast.Call)
             and ast.unparse(node.func) == "torch.load"]
    assert loads
    for call in loads:
        assert "weights_only=True" in [ast.unparse(keyword) for keyword in call.keywords]


# Settings

def test_every_setting_is_read():
    """A setting nobody reads is a promise nobody keeps."""
    read = set()
    for top in TREE.body:
        inside = getattr(top, "name", "") == "Config"
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == ("self" if inside else "config"):
                    read.add(node.attr)
    # `check_setting` and the checks of Config read all of them, so those do not count.
    checks = next(node for node in ast.walk(TREE) if getattr(node, "name", "") == "__post_init__")
    only_checked = {node.attr for node in ast.walk(checks) if isinstance(node, ast.Attribute)}
    elsewhere = read_outside(checks)
    fields = {field.name for field in dataclasses.fields(hjepa.Config)}
    assert fields - read == set()
    assert fields & only_checked - elsewhere == set()


def read_outside(checks):
    """Attributes of `config`, or of `self` in Config, that are read outside of the checks."""
    skip = set(range(checks.lineno, checks.end_lineno + 1))
    return {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in ("config", "self")
            and node.lineno not in skip}


def test_every_setting_is_bounded():
    """A number has its bounds in ALLOWED, a word its choices; a switch needs neither."""
    numbers = set()
    for field in dataclasses.fields(hjepa.Config):
        if field.type in (int, float, tuple):
            numbers.add(field.name)
            low, high = hjepa.ALLOWED[field.name]
            assert low < high
        elif field.type is str:
            assert field.default in field.metadata["choices"]
        else:
            assert field.type is bool
    assert set(hjepa.ALLOWED) == numbers


def test_every_setting_has_a_source_and_a_meaning():
    for field in dataclasses.fields(hjepa.Config):
        assert set(field.metadata) == {"source", "meaning", "choices"}
        assert field.metadata["source"] in ("paper", "vicreg", "design", "tuned"), field.name
        assert field.metadata["meaning"]
    for preset in hjepa.PRESETS.values():
        hjepa.Config(**preset)


# Imports

def modules(nodes):
    """Top-level names of what import statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.split(".")[0]


def test_imports():
    """Only the standard library, torch, numpy and matplotlib; matplotlib where it is needed."""
    everywhere = set(modules(ast.walk(TREE)))
    assert everywhere - set(sys.stdlib_module_names) == {"torch", "numpy", "matplotlib"}
    at_import = set(modules(TREE.body))
    assert not at_import & {"matplotlib", "fcntl"}
    assert not everywhere & {"pickle", "subprocess", "urllib", "socket", "random"}


FIGURES = ROOT / "figures"
STUDIES = {path.stem for path in FIGURES.glob("*.py")}


def imports_of(path):
    return set(modules(ast.walk(ast.parse(path.read_text()))))


def packages():
    """Names that requirements files give to packages, as import statements write them."""
    found = set()
    for path in (ROOT / "requirements.txt", *FIGURES.glob("requirements-*.txt")):
        for name in re.findall(r"^([\w.-]+)==", path.read_text(), re.M):
            found.add(name.lower().replace("-", "_"))
    return found


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_no_study_imports_another(name):
    """It stands on hjepa, on lib and on packages; what two studies share is in lib."""
    others = imports_of(FIGURES / f"{name}.py") - set(sys.stdlib_module_names) - packages()
    assert others - {"hjepa", "lib"} == set()


@pytest.mark.parametrize("folder", ["lib", "report"])
def test_arrows_run_one_way(folder):
    """Studies use lib, never the other way; the report reads results, it does not run studies."""
    paths = sorted((FIGURES / folder).glob("*.py"))
    assert paths
    own = {path.stem for path in paths}
    for path in paths:
        wrong = imports_of(path) & (STUDIES - own)
        assert wrong == set(), path.name
        assert folder == "report" or "report" not in imports_of(path), path.name


# What happens when it is compiled and imported

def test_compiles_without_a_warning(tmp_path):
    command = [sys.executable, "-X", f"pycache_prefix={tmp_path}", "-W", "error", "-m",
               "py_compile", "hjepa.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_import_has_no_side_effects():
    code = ("import os, sys, torch, warnings\n"
            "torch.manual_seed(1)\n"
            "before = torch.get_rng_state()\n"
            "settings = torch.get_default_dtype(), torch.get_num_threads(), dict(os.environ)\n"
            "filters = list(warnings.filters)\n"
            "import hjepa\n"
            "assert torch.equal(before, torch.get_rng_state())\n"
            "assert settings == (torch.get_default_dtype(), torch.get_num_threads(),\n"
            "                    dict(os.environ))\n"
            "assert filters == warnings.filters\n"
            "assert torch.is_grad_enabled()\n"
            "assert not any(name.startswith('matplotlib') for name in sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_system_without_file_locks_can_train(tmp_path, monkeypatch, capsys):
    """As on Windows, which has no fcntl and no os.sysconf, and whose fsync refuses a file that is
    open for reading only. One line warns, and the run is whole."""
    fsync = os.fsync

    def strict_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(descriptor)
    monkeypatch.setattr(os, "fsync", strict_fsync)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setitem(sys.modules, "fcntl", None)     # import fcntl raises ImportError
    with pytest.raises(ImportError):
        importlib.import_module("fcntl")

    spec = importlib.util.spec_from_file_location("hjepa_without_locks", ROOT / "hjepa.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)         # dataclasses look it up there
    spec.loader.exec_module(module)
    config = module.Config(sequences=64, batch=32, epochs=1, width=8, short_width=8, macro_width=8,
                           latent=8, heads=2, validate_every=0)
    monkeypatch.setattr(module, "validate", lambda *arguments: {})      # thousands of sequences
    run = tmp_path / "run"
    assert len(module.train(config, run)) == 1
    module.load(run)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "lock" in warnings[0]
    assert {path.name for path in run.iterdir()} == {".lock", "last.pt", "log.jsonl"}
