"""figures/landscapes.py: what it promises, on a smoke model."""
import json
import math

import pytest
import torch

from conftest import here
from lib import change, cli, goals, spaces
from studies import CPU, quick                                            # noqa: F401
import hjepa
import landscapes


@pytest.fixture(scope="module")
def content(smoke, guessless, tmp_path_factory):
    """The study as a user runs it, with another run beside -> its JSON."""
    out = tmp_path_factory.mktemp("landscapes")
    done = here("figures/landscapes.py", "--run", smoke, "--beside", guessless, "--goals", 3, "--n",
                16, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "landscapes.png").read_bytes()[:4] == b"\x89PNG"
    return json.loads((out / "landscapes.json").read_text())


def test_a_row_for_each_space(content):
    rows = content["rows"]
    assert [(row["tap"], row["distance"]) for row in rows[:4]] == [
        ("t1", "plain"), ("t1", "metric of change"), ("t2", "plain"), ("t2", "metric of change")]
    assert [row["epochs"] for row in rows] == 4 * [3] + 4 * [0] + 4 * [3]
    assert rows[4]["space"] == "untrained" and content["n"] == 3 and content["n_clips"] == 16
    for row in rows:
        low, high = row["success_ci"]
        assert 0 <= row["strict"] <= row["success"] <= 1 and low <= row["success"] <= high
        assert 0 < row["weakest"] <= 1 and -1 <= row["order"] <= 1


def test_the_same_weights_beside_the_run_give_the_same_rows(content):
    """The run beside it has no first guess; nothing here looks at one."""
    def measured(row):
        return {key: value for key, value in row.items() if key != "space"}
    assert [measured(row) for row in content["rows"][:4]] == [
        measured(row) for row in content["rows"][8:]]


def test_agreement_is_a_rank_correlation_of_the_rows(content):
    success = torch.tensor([row["success"] for row in content["rows"]])
    for gauge in landscapes.GAUGES:
        values = torch.tensor([row[gauge] for row in content["rows"]])
        said = spaces.spearman(values, success)
        assert content["agreement"][gauge] == (said if said is None else pytest.approx(
            said, abs=1e-3))


class Positions:
    """A space in which a clip is where its bodies are at the end: nothing can be confused."""

    def __init__(self, world, config):
        self.world, self.config = world, config
        self.device = torch.device("cpu")

    def embed(self, clips):
        return clips[:, -1, :, :2].flatten(1)

    cost = spaces.Space.cost


def test_a_perfect_space_is_searched_well(smoke):
    """And a space that sees one body only is not."""
    run, = cli.open_runs([smoke], CPU)
    config = hjepa.Config()
    world = hjepa.build_world(config)
    drawn = goals.goals_of(config, 6)
    perfect = Positions(world, config)
    errors = spaces.search(perfect, drawn, "perfect")
    assert errors.shape == (1, 6, 3) and (errors.amax(-1) < 0.1).float().mean() > 0.8
    blind = Positions(world, config)
    blind.embed = lambda clips: clips[:, -1, 0, :2]
    errors = spaces.search(blind, drawn, "blind")[0]
    assert errors[:, 0].mean() < 0.05 and errors[:, 1:].mean() > 0.1


def test_the_weakest_direction_of_a_linear_space():
    """Numbers of one body: x seen well, y half as well, velocities apart from both."""
    clips = torch.rand(5, 2, 1, 4, generator=hjepa.generator(0, "clips"))

    def seen(y, mixed):
        def embed(clips):
            x = clips[:, -1].flatten(1)
            return torch.stack([x[:, 0], y * x[:, 1] + mixed * x[:, 3], x[:, 2], x[:, 3]], 1)
        return landscapes.weakest_direction(embed, clips)
    assert seen(1.0, 0.0) == pytest.approx(1, rel=1e-3)
    assert seen(0.5, 0.0) == pytest.approx(0.25, rel=1e-3)
    # A velocity that points the way of y can hide it in part: 1 / sqrt(2) of it is left.
    assert seen(1.0, 1.0) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("flags, word", [
    (["--beside", "nowhere"], "nowhere"), (["--goals", "0"], "--goals"), (["--n", "0"], "--n")])
def test_mistakes_get_one_line(smoke, tmp_path, flags, word):
    done = here("figures/landscapes.py", "--run", smoke, *flags, "--out", tmp_path)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1


def test_a_run_of_another_world_is_refused(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    saved["config"]["radius"] = 0.05
    torch.save(saved, tmp_path / "other.pt")
    done = here("figures/landscapes.py", "--run", smoke, "--beside", tmp_path / "other.pt", "--out",
                tmp_path / "out")
    assert done.returncode == 2 and "differs in radius" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


# ---- lib/change.py

def test_the_metric_of_change_is_the_inverse_of_change_eased():
    """gap M M' gap against gap' (C + ease c I)^-1 gap, up to one factor for all gaps."""
    a = torch.randn(6, 6, generator=hjepa.generator(0, "a"))
    covariance = a @ a.T
    gaps = torch.randn(20, 6, generator=hjepa.generator(0, "b"))
    for ease in (0.03, 0.3):
        mean = torch.linalg.eigvalsh(covariance).mean()
        eased = covariance + ease * mean * torch.eye(6)
        expected = (gaps @ torch.linalg.inv(eased) * gaps).sum(1)
        got = (gaps @ change.change_metric(covariance, ease)).square().sum(1)
        factor = got / expected
        torch.testing.assert_close(factor, factor.mean().expand(20), rtol=1e-3, atol=0.0)


def test_without_ease_and_with_very_much_the_distance_is_plain():
    a = torch.randn(6, 6, generator=hjepa.generator(0, "a"))
    covariance = a @ a.T
    gaps = torch.randn(20, 6, generator=hjepa.generator(0, "b"))
    assert torch.equal(change.change_metric(covariance, 0), torch.eye(6))
    got = (gaps @ change.change_metric(covariance, 1e6)).square().sum(1)
    torch.testing.assert_close(got, gaps.square().sum(1), rtol=1e-4, atol=0.0)


def test_the_metric_counts_what_changes_fast_less_and_keeps_the_scale():
    """Two directions with variances 4 and 1, turned by an angle: weights 1 / (4 + c) and
    1 / (1 + c) with c = 0.1 times the mean, 2.5. They are scaled to a mean of 1."""
    angle = 0.7
    fast = torch.tensor([math.cos(angle), math.sin(angle)])
    slow = torch.tensor([-math.sin(angle), math.cos(angle)])
    covariance = 4 * torch.outer(fast, fast) + torch.outer(slow, slow)
    metric = change.change_metric(covariance, 0.1)
    weights = torch.tensor([1 / (4 + 0.25), 1 / (1 + 0.25)])
    weights = weights / weights.mean()
    got = torch.stack([(way @ metric).square().sum() for way in (fast, slow)])
    torch.testing.assert_close(got, weights)


def test_a_direction_that_never_changes_does_not_count_without_end():
    """Rounding can make its variance a little negative: it is taken as 0."""
    covariance = torch.diag(torch.tensor([1.0, -1e-7]))
    metric = change.change_metric(covariance, 0.1)
    squares = metric.square().sum(1)
    assert squares.isfinite().all()
    assert (squares[1] / squares[0]).item() == pytest.approx(1.05 / 0.05, rel=1e-4)


def test_where_nothing_changes_the_distance_is_plain():
    """An embedding that is the same for all clips: a metric of nan would make every plan fail."""
    torch.testing.assert_close(change.change_metric(torch.zeros(3, 3), 0.1), torch.eye(3))


def test_change_is_measured_between_neighbouring_clips(smoke):
    run, = cli.open_runs([smoke], CPU)
    model, world = run.model, hjepa.build_world(run.config)
    states, _, _ = hjepa.draw_sequences(world, run.config, 30, 0, "train", "cpu")
    obs = world.observe(states)
    for got, tap in zip(change.measure_change(model, obs, chunk=7), (0, 1)):
        steps = []
        for world_obs in obs:
            z = model.target(world_obs)[tap]
            steps += [z[k + 1] - z[k] for k in range(5)]
        torch.testing.assert_close(got, torch.cov(torch.stack(steps).T))
