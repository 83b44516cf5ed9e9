"""`train --data my.npz`: sequences of one's own train, log, resume and are planned with; mistakes
are one line and leave nothing."""
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import hjepa
from conftest import ROOT, command, same, same_runs, saved, snapshot, stop_before

N, CLIPS, FRAMES, F, A = 40, 4, 3, 3, 1         # an odd number of features
SMALL = ("--epochs 2 --batch 12 --latent 8 --width 8 --heads 2 --depth 2 --short-width 8 "
         "--macro-width 8 --predictor-blocks 2 --macro-blocks 3 --guess-width 8 --precision fp32 "
         "--device cpu").split()


def oscillators(n=N, seed=0):
    """A point on a spring that one force pushes: (cos-like, sin-like, a constant) far from 0."""
    gen = torch.Generator().manual_seed(seed)
    x, v = torch.randn(2, n, generator=gen)
    actions = 10 * torch.rand(n, CLIPS - 1, A, generator=gen)
    frames = []
    for k in range(CLIPS):
        for _ in range(FRAMES):
            push = actions[:, k - 1, 0] if k > 0 else 0
            v = v + 0.2 * (push - x)
            x = x + 0.2 * v
            frames.append(torch.stack([100 + 20 * x, v, torch.full_like(x, 7.0)], -1))
    observations = torch.stack(frames, 1).unflatten(1, (CLIPS, FRAMES))
    return {"observations": observations.numpy(), "actions": actions.numpy()}


def paired(**more):
    """Features and actions in pairs (x, y)."""
    arrays = oscillators()
    arrays["observations"] = np.concatenate([arrays["observations"][..., :1]] * 2, -1)
    arrays["actions"] = np.concatenate([arrays["actions"]] * 2, -1)
    return {**arrays, "pairs": True, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with my.npz, pairs.npz and runs of them. Read it, never write."""
    place = tmp_path_factory.mktemp("own")
    np.savez(place / "my.npz", **oscillators())
    np.savez(place / "pairs.npz", **paired())
    for name in ("my", "pairs"):
        done = command("train", "--data", place / f"{name}.npz", *SMALL, "--run", place / name)
        assert done.returncode == 0, done.stderr
        (place / f"{name}.txt").write_text(done.stdout)
    return place


def test_it_trains_as_a_process_into_a_folder_of_its_name(tmp_path):
    np.savez(tmp_path / "mine.npz", **oscillators())
    done = subprocess.run([sys.executable, ROOT / "hjepa.py", "train", "--data", "mine.npz",
                           *SMALL], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "data: mine.npz" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "runs/mine/log.jsonl").read_text().split("\n")
            if line]
    assert len(rows) == 2 and rows[1]["composite"] < rows[0]["composite"]


def test_the_log_has_what_can_be_known_without_a_world(folder):
    row = saved(folder / "my")["history"][-1]
    assert {"composite", "pred1", "guess", "std_min", "std_avg", "rank", "held1", "held2",
            "seconds"} <= set(row)
    assert not [name for name in row if name.startswith(("order", "decode", "goals"))]
    assert "held1" in (folder / "my.txt").read_text()


def test_sizes_and_statistics_are_those_of_the_data(folder):
    model, config = hjepa.load(folder / "my")
    assert (config.sequences, config.event_clips, config.clip_frames) == (36, CLIPS - 1, FRAMES)
    assert (config.features, config.actions, config.symmetries) == (F, A, False)
    arrays = oscillators()
    observations = torch.from_numpy(arrays["observations"])
    seen = model.scale.observe(observations).flatten(0, -2)
    torch.testing.assert_close(seen.mean(0), torch.zeros(F), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    actions = torch.from_numpy(arrays["actions"])
    forces = model.scale.forces(actions)
    assert abs(forces.mean()) < 1e-4 and abs(forces.std() - 1) < 1e-4
    torch.testing.assert_close(model.scale.actions(forces), actions)


def test_what_is_held_back_is_measured_and_not_trained_on(folder, tmp_path):
    """held1 and held2, computed here once more; other numbers there change no weight."""
    model, config = hjepa.load(folder / "my")
    data = hjepa.read_data(folder / "my.npz")
    obs = model.scale.observe(data["observations"])[36:]
    forces = model.scale.forces(data["actions"])[36:]
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        t1, t2 = model.target(obs[:, -1])
        held1 = (model.rollout(z1, forces)[:, -1] - t1).square().mean()
        held2 = (model.jump(z2, forces) - t2).square().mean()
    row = saved(folder / "my")["history"][-1]
    assert row["held1"] == pytest.approx(held1.item(), rel=1e-4)
    assert row["held2"] == pytest.approx(held2.item(), rel=1e-4)
    # The same numbers in another order: the statistics are the same but for rounding.
    arrays = oscillators()
    arrays["observations"][36:] = arrays["observations"][36:][::-1]
    arrays["actions"][36:] = arrays["actions"][36:][::-1]
    np.savez(tmp_path / "my.npz", **arrays)
    done = command("train", "--data", tmp_path / "my.npz", *SMALL, "--run", tmp_path / "run")
    assert done.returncode == 0
    for name, weight in hjepa.load(tmp_path / "run")[0].state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_pairs_have_symmetries_and_a_scale_that_keeps_them(folder):
    model, config = hjepa.load(folder / "pairs")
    assert config.symmetries and config.features == config.actions == 2
    assert not model.scale.obs_centre.any() and not model.scale.force_centre.any()
    assert model.scale.obs_scale[0] == model.scale.obs_scale[1] > 100
    observations = torch.from_numpy(paired()["observations"])
    assert model.scale.observe(observations).square().mean() == pytest.approx(1, abs=1e-3)
    done = command("train", "--data", folder / "pairs.npz", *SMALL, "--no-symmetries", "--run",
                   folder / "pairs")
    assert done.returncode == 2 and "symmetries is True there" in done.stderr


def test_it_resumes_bitwise(folder, tmp_path, monkeypatch):
    argv = ["train", "--data", folder / "my.npz", *SMALL, "--run", tmp_path]
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        assert command(*argv).returncode == 130
    assert saved(tmp_path)["epoch"] == 1
    assert command(*argv).returncode == 0
    assert same_runs(folder / "my", tmp_path)
    assert saved(tmp_path)["origin"]["data"]["digest"] == hjepa.digest_of(
        [torch.from_numpy(x) for x in oscillators().values()])


def test_other_data_for_a_run_or_none_are_refused(folder, tmp_path):
    np.savez(tmp_path / "other.npz", **oscillators(seed=1))
    before = snapshot(folder)
    done = command("train", "--data", tmp_path / "other.npz", *SMALL, "--run", folder / "my")
    assert done.returncode == 2 and "another --data" in done.stderr
    done = command("train", *SMALL, "--run", folder / "my")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert snapshot(folder) == before


def test_curves_work_and_what_needs_a_world_says_so(folder, tmp_path):
    done = command("curves", "--run", folder / "my", "--out", tmp_path)
    assert done.returncode == 0 and "paper" not in done.stdout, done.stderr
    record = json.loads((tmp_path / "curves.json").read_text())
    assert record["origin"]["data"]["name"].endswith("my.npz") and len(record["rows"]) == 2
    for name in ("diagnose", "probe", "plan"):
        done = command(name, "--run", folder / "my", "--out", tmp_path / "new")
        assert done.returncode == 2 and "no world" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "new").exists()
    done = subprocess.run([sys.executable, "figures/dynamics.py", "--run", folder / "my", "--out",
                           tmp_path / "new"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and "no world" in done.stderr


class Spring:
    """The simulator of the oscillators, in units of the data."""
    actions = A
    force_limit = 10.0

    def rollout(self, state, forces, clip_frames):
        x, v = (state[:, 0] - 100) / 20, state[:, 1]
        states = []
        for push in forces[..., 0].repeat_interleave(clip_frames, 1).unbind(1):
            v = v + 0.2 * (push - x)
            x = x + 0.2 * v
            states.append(torch.stack([100 + 20 * x, v, torch.full_like(x, 7.0)], -1))
        return torch.stack(states, 1), None


def example(docstring, first, last):
    """The lines of code of a docstring from the one to the other, their text left out."""
    lines = docstring.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if line.strip().startswith(last))
    code = [line for line in lines[begin:end + 1] if line.startswith(" " * 8) or not line.strip()]
    return textwrap.dedent("\n".join(code))


def test_the_docstring_of_load_plans_with_it(folder):
    model, config = hjepa.load(folder / "my")
    observations = torch.from_numpy(oscillators(2, seed=5)["observations"])
    names = {**vars(hjepa), "model": model, "config": config, "clip": observations[:, 0],
             "goal": observations[:, -1], "simulator": Spring(), "clips": CLIPS - 1,
             "gens": [hjepa.generator(0, "own", i) for i in range(2)]}
    exec(example(hjepa.load.__doc__, "def cost_to_go", "plan, _ ="), names)
    assert names["states"].shape == (2, (CLIPS - 1) * FRAMES, F)
    assert names["actions"].shape == (2, CLIPS - 1, A)
    assert names["plan"].shape == (2, CLIPS - 1, A) and names["plan"].abs().max() <= 1
    cost = names["cost_to_go"](names["clip"], 3)
    assert (cost(names["plan"][:, None]) <= cost(torch.zeros(2, 1, 3, 1))).all()


def test_the_docstring_of_train_trains(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.npz").write_bytes((folder / "my.npz").read_bytes())
    text = example(hjepa.train.__doc__, "data = read_data", "train(Config(")
    few = text.replace("30})", "1, 'batch': 4, 'width': 8, 'latent': 8})")
    assert few != text
    exec(few, {**vars(hjepa)})
    assert saved(tmp_path / "runs" / "my")["epoch"] == 1


# Mistakes.

def changed(**arrays):
    return {**oscillators(), **arrays}


def spoilt(name, value):
    arrays = oscillators()
    arrays[name].flat[5] = value
    return arrays


WRONG = {
    "no actions": ({"observations": oscillators()["observations"]}, [], "has no actions"),
    "whole numbers": (changed(actions=np.zeros((N, 3, 1), int)), [], "actions is int64"),
    "objects": (changed(actions=np.array([None])), [], "cannot be read"),
    "an axis too few": (changed(observations=np.zeros((N, 4, 3))), [], "(N, clips, frames, F)"),
    "no features": (changed(observations=np.zeros((N, 4, 3, 0))), [], "none empty"),
    "NaN": (spoilt("observations", np.nan), [], "observations holds NaN"),
    "infinite": (spoilt("actions", np.inf), [], "actions holds NaN"),
    "beyond float32": (changed(actions=np.full((N, 3, 1), 1e300)), [], "float32 cannot hold"),
    "an action a clip": (changed(actions=np.zeros((N, 4, 1))), [], "one action fewer"),
    "another number of sequences": (changed(actions=np.zeros((9, 3, 1))), [], "9 x 3 actions"),
    "one clip": ({"observations": np.zeros((N, 1, 3, 2)), "actions": np.zeros((N, 0, 1))}, [],
                 "none empty"),
    "three sequences": (oscillators(3), [], "too few"),
    "fewer than a batch": (oscillators(10), [], "batch is 12, larger than sequences, 8"),
    "odd pairs": (changed(pairs=True), [], "even numbers"),
    "pairs of text": (paired(pairs="yes"), [], "True or False"),
    "symmetries of no pairs": (oscillators(), ["--symmetries"], "no entry pairs"),
    "other clips": (oscillators(), ["--event-clips", 5], "event_clips is 5, in"),
    "other features": (oscillators(), ["--features", 4, "--actions", 1], "features is 4, in"),
    "more clips than blocks": (oscillators(), ["--macro-blocks", 2], "macro_blocks"),
    "a setting of our world": (oscillators(), ["--masses", 1, 2], "masses is a setting of our"),
    "frames beyond bounds": ({"observations": np.zeros((N, 2, 101, 2)),
                              "actions": np.zeros((N, 1, 1))}, [], "clip_frames is 101"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_the_data_is_one_line_and_leaves_nothing(name, tmp_path):
    arrays, more, says = WRONG[name]
    np.savez(tmp_path / "my.npz", **arrays)
    before = snapshot(tmp_path)
    done = command("train", "--data", tmp_path / "my.npz", *SMALL, *more, "--run", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    line, = done.stderr.splitlines()
    assert line.startswith("hjepa: ") and says in line, line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["missing", "text", "npy", "cut", "folder"])
def test_what_is_no_npz_file_is_refused(kind, tmp_path):
    path = tmp_path / "my.npz"
    if kind == "text":
        path.write_text("1 2 3\n")
    if kind == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros((4, 4)))
    if kind == "cut":
        np.savez(path, **oscillators())
        path.write_bytes(path.read_bytes()[:999])
    if kind == "folder":
        path.mkdir()
    done = command("train", "--data", path, *SMALL, "--run", tmp_path / "run")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr and not (tmp_path / "run").exists()


def test_sizes_without_data_are_refused(tmp_path):
    done = command("train", "--features", 3, "--run", tmp_path / "run")
    assert done.returncode == 2 and "features and actions" in done.stderr
    done = command("train", "--features", 3, "--actions", 1, "--run", tmp_path / "run")
    assert done.returncode == 2 and "give --data" in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_of_other_own_data_bring_their_scale(folder, tmp_path):
    """What an encoder has learnt holds for numbers that are scaled as they were."""
    arrays = oscillators(seed=1)
    arrays["observations"] = 2 * arrays["observations"]
    np.savez(tmp_path / "next.npz", **arrays)
    done = command("train", "--data", tmp_path / "next.npz", *SMALL, "--init", folder / "my",
                   "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    old, new = (saved(run)["model"] for run in (folder / "my", tmp_path / "run"))
    assert same({name: w for name, w in old.items() if name.startswith("scale.")},
                {name: w for name, w in new.items() if name.startswith("scale.")})
