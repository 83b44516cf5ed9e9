"""MPS without a Mac: can everything that runs on the device run on Apple's?

Evidence, not a run on a Mac. All tensors here are on the CPU. Every operator that PyTorch is asked
for is written down, and looked up in the table of operators in PyTorch's own wheel: it must have a
kernel for MPS, or be composed of other operators. And no float64 tensor may appear, since MPS has
none. What this cannot see: operators inside of a composed one, a kernel that is there but wrong or
refuses these shapes, and a tensor that lies on the wrong device.

A few functions work on the CPU on purpose, whatever the device: they are named below, with the
reason.
"""
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hjepa

# Functions of hjepa.py that may use float64 or operators without a kernel, and why.
ON_CPU = {
    "effective_rank": "eigvalsh has no MPS kernel: it begins with z.cpu()",
    "ridge": "float64 for a stable solution: it gets latents and targets, which are on the CPU",
    "r2": "of what a probe says, float64 as that is",
    "validate": "what the probes say, x.double() @ weight: latents are on the CPU",
    "draw_probes": "what the probes say, x.double() @ weight: latents are on the CPU",
    "draw_decoded_positions": "draws what the probes say",
    "draw_diagnostics": "covariances and spectra of latents, which are on the CPU",
}
COMPOSED = {"CompositeImplicitAutograd", "CompositeExplicitAutograd",
            "CompositeExplicitAutogradNonFunctional"}


# The table of operators

def read_table(text):
    """native_functions.yaml -> dict operator -> (dispatch keys, the operator it delegates to).

    Read as plain text: of each entry three lines are needed, and PyYAML is one package more. An
    operator without dispatch keys and delegate is composed of others.
    """
    table = {}
    for entry in re.split(r"^- func: ", text, flags=re.M)[1:]:
        name = entry.split("(")[0]
        delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.M)
        section = re.search(r"^  dispatch:.*\n((?:    .*\n|\s*#.*\n)+)", entry, re.M)
        keys = set()
        if section:
            for line in section[1].splitlines():
                line = line.split("#")[0]
                if ":" in line:
                    keys.update(key.strip() for key in line.split(":")[0].split(","))
        elif not delegate:
            keys.add("CompositeImplicitAutograd")
        table[name] = keys, delegate[1] if delegate else None
    return table


TABLE = read_table((Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
                    / "native_functions.yaml").read_text())


def runs_on_mps(operator):
    """Whether the table has a kernel for MPS, or one that is composed of other operators.

    Many an operator f is composed of one call of f.out, which does the work. So if operators of the
    same name have kernels for the CPU, one of them must have one for MPS.
    """
    keys, delegate = TABLE[operator]
    if delegate:
        keys = keys | TABLE[delegate][0]
    if "MPS" in keys:
        return True
    if not keys & COMPOSED:
        return False
    family = [other for name, (other, _) in TABLE.items()
              if name.split(".")[0] == operator.split(".")[0]]
    workers = [other for other in family if "CPU" in other]
    return not workers or any("MPS" in other for other in workers)


def test_the_table_is_read_as_it_is_written():
    table = read_table("- func: plain(Tensor self) -> Tensor\n"
                       "  variants: function\n\n"
                       "- func: own.overload(Tensor self) -> Tensor\n"
                       "  dispatch:\n"
                       "    CPU, CUDA: one\n"
                       "    # a remark: of one line\n"
                       "    MPS: two\n"
                       "  tags: core\n\n"
                       "- func: child(Tensor self) -> Tensor\n"
                       "  structured_delegate: child.out\n"
                       "  dispatch:\n"
                       "    SparseCPU: three\n")
    assert table == {"plain": ({"CompositeImplicitAutograd"}, None),
                     "own.overload": ({"CPU", "CUDA", "MPS"}, None),
                     "child": ({"SparseCPU"}, "child.out")}
    assert len(TABLE) > 2000
    assert runs_on_mps("addmm")                 # by its delegate
    assert runs_on_mps("add_.Tensor")
    assert runs_on_mps("einsum")                # composed
    assert runs_on_mps("abs")                   # composed of one call of abs.out
    assert runs_on_mps("_fused_adamw_")
    assert not runs_on_mps("_linalg_eigh")
    assert not runs_on_mps("linalg_lstsq")


# What is asked for

class Trace(TorchDispatchMode):
    """Writes down each operator, whether it took or made float64, and for which function of
    hjepa.py: the innermost one that is being called."""

    def __init__(self):
        super().__init__()
        self.operators = set()                  # (operator, function)
        self.doubles = set()                    # the same, of those with float64

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "aten":            # profiler.* marks times, it works on no tensor
            name = func._schema.name.removeprefix("aten::")
            overload = func._schema.overload_name
            note = f"{name}.{overload}" if overload else name, calling_function()
            self.operators.add(note)
            for x in tree_leaves((args, kwargs, out)):
                if isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128):
                    self.doubles.add(note)
        return out

    def without_kernel(self):
        return {(operator, function) for operator, function in self.operators
                if function not in ON_CPU and not runs_on_mps(operator)}

    def double_on_device(self):
        return {(operator, function) for operator, function in self.doubles
                if function not in ON_CPU}

    def check(self, at_least):
        """Nothing that MPS cannot do, and some operators that must have been seen."""
        assert self.without_kernel() == set()
        assert self.double_on_device() == set()
        assert at_least <= {operator for operator, _ in self.operators}


def calling_function():
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == hjepa.__file__ and not code.co_name.startswith("<"):
            return code.co_name
        frame = frame.f_back
    return None


CPU = torch.device("cpu")
CONFIG = hjepa.Config(sequences=64, batch=32, latent=8, width=8, heads=2, depth=2, short_width=8,
                      macro_width=8, samples=6, elites=2, iterations=2, guess_width=16,
                      guess_weight=5.0, sim_weight=5.0, contact_share=0.5, precision="fp32")


@pytest.fixture(scope="module")
def model():
    return hjepa.build_model(CONFIG).eval()


@pytest.mark.parametrize("map_weight", [5.0, 0.0])
def test_training_runs_on_mps(map_weight):
    """From the first world to the last step of an epoch, with the optimiser of an MPS device."""
    weights = {**CONFIG.loss_weights, "map": map_weight}
    world = hjepa.build_world(CONFIG)
    assert CONFIG.symmetries
    with Trace() as trace:
        model = hjepa.build_model(CONFIG)
        optimizer = hjepa.make_optimizer(model, CONFIG, torch.device("mps"))
        states, forces, shares = hjepa.draw_training(world, CONFIG, CPU)

        def loss(obs, forces, shares):
            return hjepa.objective(model, obs, forces, weights, shares)
        data = world.observe(states), forces, shares
        hjepa.train_epoch(loss, model, optimizer, data, CONFIG, 0, CPU, "fp32")
    trace.check({"addmm", "_softmax", "native_layer_norm_backward", "mse_loss_backward",
                 "lerp_.Scalar", "nonzero", "index_put_"})
    functions = {function for _, function in trace.operators}
    assert {"reflect", "guess_error", "similarity_terms", "with_gradient"} <= functions
    assert trace.doubles == set()


def test_validation_runs_on_mps(model):
    world = hjepa.build_world(CONFIG)
    with Trace() as trace:
        goals = hjepa.make_goals(world, 2, 5, hjepa.generator(0, "test"))
        hjepa.validate(model, world, CONFIG, CPU, goals, n=40)
    trace.check({"topk", "_linalg_eigh", "_linalg_solve_ex"})
    # The exceptions are needed, and used by nothing else.
    assert ("_linalg_eigh", "effective_rank") in trace.operators
    assert {function for _, function in trace.doubles} == {"ridge", "r2", "validate"}


@pytest.mark.parametrize("planner", hjepa.PLANNERS)
def test_planning_runs_on_mps(planner, model):
    world = hjepa.build_world(CONFIG)
    gens = [hjepa.generator(0, "test", i) for i in range(2)]
    goals = hjepa.make_goals(world, 2, 5, hjepa.generator(0, "test"))
    network = {"addmm", "_softmax"}
    search = {"topk", "gather"}
    at_least = {"zero": {"rand.generator", "copy_"}, "random": {"rand.generator", "copy_"},
                "first guess": network, "fly and fold": search}.get(planner, network | search)
    with Trace() as trace:
        hjepa.run_planner(planner, model, world, CONFIG, goals["clip"], goals["goal"], gens)
    trace.check(at_least)
    assert trace.doubles == set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")     # of matplotlib, when it is traced
@pytest.mark.parametrize("draw", [hjepa.draw_probes, hjepa.draw_diagnostics])
def test_figures_run_on_mps(draw, model, monkeypatch, tmp_path):
    """Linear probes and spectra: the encoders on the device, the rest on the CPU."""
    def pretend_checkpoint(run):
        return {"config": {"seed": 0, "sequences": 64}, "epoch": 1}
    saved = []
    monkeypatch.setattr(hjepa, "read_checkpoint", pretend_checkpoint)
    monkeypatch.setattr(hjepa, "restore", lambda saved, device: (model, CONFIG))
    monkeypatch.setattr(hjepa, "save_figure", lambda *arguments: saved.append(arguments))
    with Trace() as trace:
        draw(Namespace(run=tmp_path, out=tmp_path, device=CPU, n=40, argv=[]))
    assert len(saved) == 1
    trace.check({"_linalg_eigh"} if draw is hjepa.draw_diagnostics else {"_linalg_solve_ex"})


@pytest.mark.parametrize("name", ON_CPU)
def test_what_is_excepted_exists(name):
    assert callable(getattr(hjepa, name))


def test_what_is_done_for_the_device_itself_is_ready_for_mps():
    """Settings that ask for the device's type by name."""
    mps = torch.device("mps")
    with hjepa.autocast(mps, "fp32"):
        assert not torch.is_autocast_enabled("mps")
    assert hjepa.pick_precision("auto", mps) == "fp32"
    assert hjepa.device_name(mps).startswith("mps, ")
    with torch.autocast("mps", enabled=False):                            # as vicreg_terms does
        pass


# The guard itself

def test_an_operator_without_a_kernel_is_noticed(model):
    """An objective that takes a spectrum: PyTorch has no eigenvectors on MPS."""
    def spectrum(z):
        values, _ = torch.linalg.eigh(z.transpose(-1, -2) @ z)
        return {"std": values.mean()}
    obs = torch.randn(16, 6, 5, 12)
    with Trace() as trace:
        hjepa.objective(model, obs, torch.randn(16, 5, 6), CONFIG.loss_weights,
                        regularise=spectrum)
    assert trace.without_kernel() == {("_linalg_eigh", "objective")}
    with pytest.raises(AssertionError):
        trace.check(set())


def test_float64_is_noticed(model):
    """An objective that adds up in float64."""
    def precise(e):
        return {"pred1": (e["p1"].double() - e["t1"]).square().mean()}
    obs = torch.randn(16, 6, 5, 12)
    with Trace() as trace:
        hjepa.objective(model, obs, torch.randn(16, 5, 6), CONFIG.loss_weights, predict=precise)
    assert ("pow.Tensor_Scalar", "objective") in trace.double_on_device()
    with pytest.raises(AssertionError):
        trace.check(set())


def test_an_operator_that_was_never_asked_for_is_noticed():
    """Otherwise a trace that sees nothing would pass."""
    with Trace() as trace:
        torch.zeros(2)
    with pytest.raises(AssertionError):
        trace.check({"addmm"})
