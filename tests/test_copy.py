"""The copy-paste guarantee: every part above the line works alone in another file, given only torch
and the parts that its docstring names after `needs:`.

Each part is written into a file of its own, imported and used by the recipe of its name below. A
part that reaches for anything else of hjepa.py fails; so does a part without a recipe.
"""
import ast
import builtins
import importlib.util
import inspect
import re
import symtable

import pytest
import torch

import hjepa

HEAD = ("import dataclasses, math, torch\nimport torch.nn as nn\n"
        "import torch.nn.functional as F\n\n\n")
TEXT = inspect.getsource(hjepa)
ABOVE = TEXT[:TEXT.index("# Above: pure functions and modules")]
PARTS = {n.name: n for n in ast.parse(ABOVE).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def needs(name):
    """The parts named in a docstring, and those that these name, in the order of the file."""
    named = re.findall(r"\bneeds:\s*(\w+(?:,\s*\w+)*)", ast.get_docstring(PARTS[name]) or "")
    found = set(re.split(r",\s*", ", ".join(named))) - {""}
    assert found <= set(PARTS), f"{name} names parts that do not exist: {found - set(PARTS)}"
    for other in list(found):
        found |= set(needs(other))
    return [part for part in PARTS if part in found]


def paste(names, folder):
    """A module made of these parts and nothing else."""
    path = folder / "pasted.py"
    path.write_text(HEAD + "\n\n".join(inspect.getsource(getattr(hjepa, name)) for name in names))
    spec = importlib.util.spec_from_file_location("pasted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foreign_names(text):
    """Names that a text reads from outside: neither its own nor builtin."""
    top, read = symtable.symtable(text, "pasted", "exec"), set()

    def visit(table):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                read.add(symbol.get_name())
        for child in table.get_children():
            visit(child)
    visit(top)
    own = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    return read - own - set(dir(builtins)) - {"__name__", "__file__"}


# Recipes: m is the pasted module. What a part takes as an argument may come from anywhere.

def gen(seed=0):
    return torch.Generator().manual_seed(seed)


SMALL = dict(latent=8, width=8, heads=2, short_width=16, macro_width=16)
CLIPS, FORCES = torch.randn(4, 6, 5, 12, generator=gen()), torch.randn(4, 5, 6, generator=gen(1))
PLANS = torch.randn(4, 3, 5, 6, generator=gen(2))


def use_opt(m):
    assert m.opt(1, "design", "a number", 0, 2).metadata["high"] == 2


def use_config(m):
    assert m.Config(epochs=3).epochs == 3
    for wrong in ({"epochs": 0}, {"device": "abacus"}, {"tap": 9}):
        with pytest.raises(ValueError):
            m.Config(**wrong)


def use_world(m):
    world = m.World((1.0, 3.0))
    state, forces = world.reset(200, gen()), world.random_forces(200, 5, gen(1))
    states, hits = world.rollout(state, forces)
    assert world.observe(states).shape == (200, 25, 8) and hits.any()
    with pytest.raises(ValueError):
        m.World((1.0,) * 80, 0.2).reset(1, gen())


def use_make_sequences(m):
    states, forces, hits = m.make_sequences(hjepa.World(), 4, 6, gen())
    assert states.shape == (4, 6, 5, 3, 4) and forces.shape == (4, 5, 6) and hits.shape == (4, 6, 5)


def use_random_symmetry(m):
    obs, forces = m.random_symmetry(CLIPS, FORCES, gen())
    assert obs.shape == CLIPS.shape and forces.shape == FORCES.shape


def use_epoch_batches(m):
    for symmetries in (True, False):
        assert len(list(m.epoch_batches(CLIPS, FORCES, 2, gen(), symmetries))) == 2


def use_block(m):
    assert m.Block(8, 2)(torch.randn(4, 5, 8)).shape == (4, 5, 8)


def use_encoder(m):
    for z in m.Encoder(latent=8, width=8, heads=2)(CLIPS[:, 0]):
        assert z.shape == (4, 8)


def use_predictor(m):
    assert m.Predictor(8, 6, 16)(torch.randn(4, 8), FORCES[:, 0]).shape == (4, 8)


def use_hjepa(m):
    for shared in (False, True):
        model = m.HJEPA(**SMALL, shared=shared)
        z1, z2 = model.context(CLIPS[:, 0])
        assert model.rollout(z1, FORCES).shape == (4, 5, 8)
        assert model.jump(z2, FORCES).shape == model.bridge(model.lift(z1)).shape == (4, 8)


def use_vicreg_terms(m):
    assert all(x.isfinite() for x in m.vicreg_terms(torch.randn(5, 3)))
    with pytest.raises(ValueError):
        m.vicreg_terms(torch.zeros(1, 3))


def use_objective(m):
    for weight in (5.0, 0.0):
        total, terms = m.objective(hjepa.HJEPA(**SMALL), CLIPS, FORCES, map_weight=weight)
        total.backward()
        assert terms["pred1"] > 0


def use_cem(m):
    start = torch.zeros(1, 2, 2)
    plan, cost = m.cem(lambda plans: (plans - 1).square().sum((-1, -2)), start, start + 1, [gen()])
    assert cost < 0.1 and plan.shape == (1, 2, 2)
    for wrong in (dict(gens=[gen()], elites=1), dict(gens=[])):
        with pytest.raises(ValueError):
            m.cem(None, start, start, **wrong)


def use_latent_cost(m):
    cost = m.latent_cost(lambda z, plan: z + plan.sum(1), torch.zeros(4, 6), torch.ones(4, 6))
    assert cost(PLANS).shape == (4, 3)


def use_short_cost(m):
    assert m.short_cost(hjepa.HJEPA(**SMALL), CLIPS[:, 0], CLIPS[:, 1])(PLANS).shape == (4, 3)


def use_macro_cost(m):
    assert m.macro_cost(hjepa.HJEPA(**SMALL), CLIPS[:, 0], CLIPS[:, 1])(PLANS).shape == (4, 3)


def use_images(m):
    assert torch.equal(m.images(PLANS, 8)[:4], PLANS) and m.images(PLANS, 3).shape == (12, 3, 5, 6)


def use_mirrored(m):
    cost = m.mirrored(lambda model, clip, goal: lambda plans: plans.square().sum((-1, -2)), None,
                      CLIPS[:, 0], CLIPS[:, 1])
    assert cost(PLANS).shape == (4, 3)


def use_replan(m):
    world = hjepa.World()
    clip = world.reset(2, gen())[:, None].expand(-1, 5, -1, -1)
    states, forces = m.replan(world, clip, 2, lambda now, left: lambda plans: plans.sum((-1, -2)),
                              [gen(), gen(1)], samples=4, iterations=1, elites=2)
    assert states.shape == (2, 10, 3, 4) and forces.shape == (2, 2, 6)


@pytest.mark.parametrize("name", PARTS)
def test_part_works_alone(name, tmp_path):
    recipe = globals().get(f"use_{name.lower()}")
    assert recipe, (f"{name} is new and has no recipe: add use_{name.lower()}(m) to this file that "
                    f"builds and uses m.{name}, or move {name} below the line")
    module = paste([*needs(name), name], tmp_path)
    assert foreign_names((tmp_path / "pasted.py").read_text()) == set()
    recipe(module)


def test_every_recipe_has_its_part():
    recipes = {name[4:] for name in globals() if name.startswith("use_")}
    assert recipes == {name.lower() for name in PARTS} and len(PARTS) > 10


@pytest.mark.parametrize("name, without", [("objective", "vicreg_terms"), ("Encoder", "Block"),
                                           ("HJEPA", "Predictor"), ("short_cost", "latent_cost")])
def test_a_part_that_is_left_out_is_noticed(name, without, tmp_path):
    """The guard itself: take one needed part away and both checks fail."""
    module = paste([part for part in (*needs(name), name) if part != without], tmp_path)
    assert foreign_names((tmp_path / "pasted.py").read_text()) == {without}
    with pytest.raises(NameError, match=without):
        globals()[f"use_{name.lower()}"](module)
