"""The copy-paste guarantee: every class and function of the tutorial works alone in another file,
given only torch and the parts that its docstring names after `needs:`.

Each part is written into a file of its own, imported and used by the recipe of its name below. A
part that reaches for anything else of hjepa.py fails; so does a part without a recipe.
"""
import ast
import builtins
import importlib.util
import inspect
import math
import re
import symtable

import pytest
import torch

import hjepa

HEAD = ("import math\n"
        "\n"
        "import torch\n"
        "import torch.nn as nn\n"
        "import torch.nn.functional as F\n\n\n")
TEXT = inspect.getsource(hjepa)
TUTORIAL = TEXT[:TEXT.index("\n# The tutorial ends here.")]
PARTS = {node.name: node for node in ast.parse(TUTORIAL).body
         if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def named(name):
    """The parts that a docstring names after `needs:`."""
    docstring = ast.get_docstring(PARTS[name]) or ""
    found = []
    for names in re.findall(r"\bneeds:\s*(\w+(?:,\s*\w+)*)", docstring):
        found.extend(re.split(r",\s*", names))
    unknown = set(found) - set(PARTS)
    assert not unknown, f"{name} names parts that do not exist: {unknown}"
    return found


def source(name):
    """The text of a part, its decorators included."""
    node = PARTS[name]
    first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
    lines = TUTORIAL.splitlines()[first - 1:node.end_lineno]
    return "\n".join(lines) + "\n"


def paste(names, folder):
    """-> a module made of these parts and nothing else, in the order of the file; and its text."""
    text = HEAD + "\n\n".join(source(name) for name in PARTS if name in names)
    path = folder / "pasted.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("pasted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, text


def foreign_names(text):
    """Names that a text reads from outside: neither its own nor builtin."""
    top = symtable.symtable(text, "pasted", "exec")
    read = set()

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


SMALL = dict(latent=8, width=8, heads=2, short_width=16, macro_width=16,
             macro_blocks=5, guess_width=0)
WEIGHTS = {"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 5.0}
CLIPS = torch.randn(4, 6, 5, 12, generator=gen())
FORCES = torch.randn(4, 5, 6, generator=gen(1))
PLANS = torch.randn(4, 3, 5, 6, generator=gen(2))


def sum_of_squares(plans):
    return plans.square().sum((-1, -2))


def use_bounce(m):
    height, rise = m.bounce(torch.ones(3), torch.ones(3), torch.tensor([0.5, 2.0, 3.0]))
    torch.testing.assert_close(height, torch.tensor([0.375, 0.0, 0.5]))   # it is back at 2
    torch.testing.assert_close(rise[0], torch.tensor(0.5))


def use_reach_wall(m):
    time, impact = m.reach_wall(torch.ones(2), torch.tensor([2.0, -1.0]), torch.zeros(2))
    assert time.tolist() == [0.5, math.inf]
    assert impact[0] == 2


def use_fly_between_walls(m):
    x, v = m.fly_between_walls(torch.zeros(1), torch.ones(1), torch.zeros(1), torch.ones(1),
                               torch.tensor([4.5]))
    torch.testing.assert_close(x, torch.tensor([0.5]))                    # there, back and there
    torch.testing.assert_close(v, torch.ones(1))


def use_reach_disc(m):
    d = torch.tensor([[3.0], [0.0]])
    time = m.reach_disc(d, -d, torch.zeros(2, 1), reach=1.5, dt=1.0)
    torch.testing.assert_close(time, torch.tensor([0.5]))


def use_world(m):
    world = m.World((1.0, 3.0))
    state = world.reset(200, gen())
    forces = world.random_forces(200, 5, gen(1))
    states, contacts = world.rollout(state, forces)
    assert world.observe(states).shape == (200, 25, 8)
    assert contacts.any()
    with pytest.raises(ValueError):
        m.World((1.0,) * 80, 0.2).reset(1, gen())
    with pytest.raises(ValueError):
        m.World((1.0,), 1.0).reset(1, gen())


def use_make_sequences(m):
    states, forces, contacts = m.make_sequences(hjepa.World(), 4, 6, gen())
    assert states.shape == (4, 6, 5, 3, 4)
    assert forces.shape == (4, 5, 6)
    assert contacts.shape == (4, 6, 5)


def use_reflect(m):
    flip = torch.tensor([[True, False]]).expand(4, 2)
    assert m.reflect(FORCES, flip, flip[:, 0]).shape == FORCES.shape


def use_random_symmetry(m):
    obs, forces = m.random_symmetry(CLIPS, FORCES, gen())
    assert obs.shape == CLIPS.shape
    assert forces.shape == FORCES.shape


def use_epoch_batches(m):
    for symmetries in (True, False):
        batches = list(m.epoch_batches(CLIPS, FORCES, torch.ones(4), 2, gen(), symmetries))
        assert len(batches) == 2


def use_block(m):
    assert m.Block(8, 2)(torch.randn(4, 5, 8)).shape == (4, 5, 8)


def use_read_out(m):
    assert m.read_out(5, 8, 6)(torch.randn(4, 5, 8)).shape == (4, 6)


def use_encoder(m):
    encoder = m.Encoder(latent=8, width=8, heads=2)
    for z in encoder(CLIPS[:, 0]):
        assert z.shape == (4, 8)


def use_adaptiveblock(m):
    assert m.AdaptiveBlock(8, 3)(torch.randn(4, 8), torch.randn(4, 3)).shape == (4, 8)


def use_predictor(m):
    assert m.Predictor(8, 6, 16)(torch.randn(4, 8), FORCES[:, 0]).shape == (4, 8)


def use_small_map(m):
    assert m.small_map(8)(torch.randn(4, 8)).shape == (4, 8)


def use_firstguess(m):
    guess = m.FirstGuess(8, 6, 5, width=16)
    z = torch.randn(4, 8)
    assert guess(z, z, z, torch.tensor([1, 2, 5, 5])).shape == (4, 5, 6)


def use_hjepa(m):
    for shared in (False, True):
        model = m.HJEPA(**{**SMALL, "guess_width": 16}, shared=shared)
        z1, z2 = model.context(CLIPS[:, 0])
        assert model.rollout(z1, FORCES).shape == (4, 5, 8)
        assert model.jump(z2, FORCES).shape == (4, 8)
        assert model.bridge(model.lift(z1)).shape == (4, 8)


def use_vicreg_terms(m):
    assert all(term.isfinite() for term in m.vicreg_terms(torch.randn(5, 3)).values())
    with pytest.raises(ValueError):
        m.vicreg_terms(torch.zeros(1, 3))


def use_embeddings(m):
    e = m.embeddings(hjepa.HJEPA(**SMALL), CLIPS, FORCES)
    assert e["p1"].shape == (5, 4, 8)


def use_prediction_errors(m):
    e = {name: torch.randn(4, 8) for name in ("p1", "t1", "p2", "t2")}
    for more in ({}, {"shares": torch.ones(4)}):
        assert set(m.prediction_errors({**e, **more})) == {"pred1", "pred2"}


def use_with_gradient(m):
    z = torch.ones(5, 2, 3, requires_grad=True)
    same = m.with_gradient(z, torch.tensor([0.5, 2.0]))
    assert torch.equal(same, z)
    same.sum().backward()
    assert z.grad[0, :, 0].tolist() == [0.5, 2.0]


def use_similarity_terms(m):
    e = {"t1": torch.randn(5, 4, 8), "t2": torch.randn(4, 8), "t2_before": torch.randn(4, 8)}
    assert set(m.similarity_terms(e)) == {"sim1", "sim2"}


def use_guess_error(m):
    model = hjepa.HJEPA(**{**SMALL, "guess_width": 16})
    e = {"z1": torch.randn(4, 8), "z2": torch.randn(4, 8), "t1": torch.randn(5, 4, 8)}
    assert m.guess_error(model, e, FORCES)["guess"] > 0


def use_map_errors(m):
    e = {"t1": torch.randn(5, 4, 8), "t2": torch.randn(4, 8)}
    assert set(m.map_errors(hjepa.HJEPA(**SMALL), CLIPS, e)) == {"bridge", "lift"}


def use_objective(m):
    for weights in (WEIGHTS, {**WEIGHTS, "map": 0.0, "sim": 5.0, "guess": 5.0}):
        model = hjepa.HJEPA(**{**SMALL, "guess_width": 16})
        total, terms = m.objective(model, CLIPS, FORCES, weights, torch.ones(4))
        total.backward()
        assert terms["pred1"] > 0


def use_better_of(m):
    plan, cost = m.better_of(PLANS[:, 0], torch.zeros(4), PLANS[:, 1], torch.ones(4))
    assert torch.equal(plan, PLANS[:, 0])
    assert not cost.any()


def use_cem(m):
    start = torch.zeros(1, 2, 2)

    def cost(plans):
        return sum_of_squares(plans - 1)
    plan, value = m.cem(cost, start, start + 1, [gen()], low=-2.0, high=2.0)
    assert value < 0.1
    assert plan.shape == (1, 2, 2)
    for wrong in (dict(gens=[gen()], elites=1), dict(gens=[])):
        with pytest.raises(ValueError):
            m.cem(None, start, start, **wrong, low=-2.0, high=2.0)


def use_latent_cost(m):
    def predict(z, plans):
        return z + plans.sum(1)
    cost = m.latent_cost(predict, torch.zeros(4, 6), torch.ones(4, 6))
    assert cost(PLANS).shape == (4, 3)


def use_short_cost(m):
    assert m.short_cost(hjepa.HJEPA(**SMALL), CLIPS[:, 0], CLIPS[:, 1])(PLANS).shape == (4, 3)


def use_macro_cost(m):
    assert m.macro_cost(hjepa.HJEPA(**SMALL), CLIPS[:, 0], CLIPS[:, 1])(PLANS).shape == (4, 3)


def use_first_guess(m):
    model = hjepa.HJEPA(**{**SMALL, "guess_width": 16})
    assert m.first_guess(model, CLIPS[:, 0], CLIPS[:, 1], 3).shape == (4, 3, 6)


def use_goal_clip(m):
    world = hjepa.World()
    state = world.reset(2, gen())
    clip = m.goal_clip(world, state)
    assert clip.shape == (2, 5, 3, 4) and torch.equal(clip[:, -1], state)


def use_cheaper_of(m):
    plan = m.cheaper_of(sum_of_squares, PLANS[:, 0], torch.zeros(4, 5, 6))
    assert not plan.any()


def use_loop(plan):
    world = hjepa.World()
    clip = world.reset(2, gen())[:, None].expand(-1, 5, -1, -1)

    def cost_to_go(now, left):
        return sum_of_squares

    def guess(now, left):
        return torch.ones(2, left, 6)
    for start in (None, guess):
        states, forces = plan(world, clip, 2, cost_to_go, [gen(), gen(1)], start, samples=4,
                              iterations=1, elites=2)
        assert states.shape == (2, 10, 3, 4)
        assert forces.shape == (2, 2, 6)


def use_plan_once(m):
    use_loop(m.plan_once)


def use_replan(m):
    use_loop(m.replan)


@pytest.mark.parametrize("name", PARTS)
def test_part_works_alone(name, tmp_path):
    recipe = globals().get(f"use_{name.lower()}")
    assert recipe, (f"{name} is new and has no recipe: add use_{name.lower()}(m) to this file that "
                    f"builds and uses m.{name}, or move {name} below the tutorial")
    module, text = paste([*named(name), name], tmp_path)
    assert foreign_names(text) == set()
    recipe(module)


@pytest.mark.parametrize("name", PARTS)
def test_needs_names_nothing_that_can_be_left_out(name):
    """Each part that is named is read by the part itself or by another part that is named."""
    together = [*named(name), name]
    assert len(together) == len(set(together))
    for other in named(name):
        readers = [part for part in together if part != other]
        read = set()
        for part in readers:
            read |= foreign_names(HEAD + source(part))
        assert other in read, f"{name} names {other}, which nothing reads"


def test_every_recipe_has_its_part():
    recipes = {name[4:] for name in globals() if name.startswith("use_")} - {"loop"}
    assert recipes == {name.lower() for name in PARTS}
    assert len(PARTS) > 20


@pytest.mark.parametrize("name, without", [("objective", "vicreg_terms"), ("Encoder", "Block"),
                                           ("HJEPA", "Predictor"), ("short_cost", "latent_cost"),
                                           ("replan", "better_of"), ("epoch_batches", "reflect"),
                                           ("HJEPA", "FirstGuess"), ("objective", "guess_error"),
                                           ("first_guess", "reflect"), ("cheaper_of", "better_of")])
def test_a_part_that_is_left_out_is_noticed(name, without, tmp_path):
    """The guard itself: take one needed part away and both checks fail."""
    names = [part for part in (*named(name), name) if part != without]
    text = HEAD + "\n\n".join(source(part) for part in names)
    assert foreign_names(text) == {without}
    with pytest.raises(NameError, match=without):
        module, _ = paste(names, tmp_path)
        globals()[f"use_{name.lower()}"](module)


# Code in comments

def snippet(first_line):
    """The lines of code that a comment shows, from first_line to the end of the comment."""
    lines = TUTORIAL.splitlines()
    start = lines.index("#   " + first_line)
    code = []
    for line in lines[start:]:
        if not line.startswith("#"):
            break
        code.append(line[4:])
    return "\n".join(code)


def test_a_step_of_training_as_it_is_shown():
    model = hjepa.HJEPA(**SMALL)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    names = {"model": model, "obs": CLIPS, "forces": FORCES, "weights": WEIGHTS,
             "optimizer": optimizer, "objective": hjepa.objective}
    before = [p.clone() for p in model.parameters()]
    exec(snippet("total, terms = objective(model, obs, forces, weights)"), names)
    for old, new in zip(before, model.parameters()):
        assert not torch.equal(old, new)


def test_planning_as_it_is_shown():
    world = hjepa.World()
    states, _, _ = hjepa.make_sequences(world, 1, 6, gen())
    names = {"model": hjepa.HJEPA(**SMALL), "world": world, "clip": states[:, 0],
             "goal": states[:, 5], "torch": torch, "short_cost": hjepa.short_cost,
             "replan": hjepa.replan}
    exec(snippet("def cost_to_go(now, clips_left):"), names)
    assert names["states"].shape == (1, 25, 3, 4)
    assert names["forces"].shape == (1, 5, 6)
