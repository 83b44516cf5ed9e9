"""What the predictors with a latent variable say of right and wrong futures."""
import hjepa
import torch

from lib import latent_training, latent_world, stats

NEIGHBOURS = 16                                 # worlds behind a guess of the kick from zeta
DRAWN = 16                                      # futures that are drawn from a noisy zeta
GRID = 15                                       # kicks along each axis of a map
REACH = 1.6                                     # of a map, in sizes of the kick
MAP_WORLDS = 12
LINE = 65                                       # kicks on the way from left to right
WORLDS_ON_LINE = 64

# Futures beside the one that happened. The first is possible, the others never happen after a kick
# like those in training.
OTHERS = ("other", "twice", "body", "world")


def futures(run, world, kicked):
    """Kicked -> dict of embeddings t (N, D): "right", the future that happened, and of OTHERS:

    other   the kick of the next world in place of the own one; with two outcomes, the opposite one
    twice   a kick twice as strong
    body    the same kick of another body
    world   the future of the next world
    """
    opposite = (kicked.push[:, 1] == 0).all()
    pushes = {"right": kicked.push, "twice": 2 * kicked.push,
              "other": -kicked.push if opposite else kicked.push.roll(1, 0)}
    found = {}
    for name, push in pushes.items():
        future = latent_world.future_of(world, kicked.clip, kicked.forces, push)
        found[name] = latent_world.embed(run.model, world, future)
    future = latent_world.future_of(world, kicked.clip, kicked.forces, kicked.push,
                                    latent_world.OTHER_BODY)
    found["body"] = latent_world.embed(run.model, world, future)
    found["world"] = found["right"].roll(1, 0)
    return found


def guess_from_neighbours(zeta, push, new_zeta):
    """zeta (N, d), push (N, 2), new_zeta (M, d) -> (M, 2): the mean push of the NEIGHBOURS worlds
    whose zeta is closest. Worlds of equal zeta (a discrete one) are taken all together."""
    distances = torch.cdist(new_zeta.double(), zeta.double())             # (M, N)
    farthest = distances.topk(min(NEIGHBOURS, len(zeta)), largest=False).values[:, -1:]
    near = (distances <= farthest + 1e-9).double()
    return near @ push.double() / near.sum(1, keepdim=True)


def explained(guess, push):
    """Pushes (M, 2) twice -> the share of the variance of push that the guess explains, both axes
    together."""
    missed = (push.double() - guess).square().sum()
    spread = (push.double() - push.double().mean(0)).square().sum()
    return (1 - missed / spread).item()


def assigned(zeta, push, new_zeta, new_push):
    """Numbers of discrete zetas (N, 1), pushes (N, 2), and the same of new worlds -> bools (M,): is
    the kick of a new world on the side that its zeta stands for in the first ones?"""
    right = push[:, 0] > 0
    hits = torch.zeros(len(new_zeta), dtype=torch.bool, device=zeta.device)
    for value in new_zeta.unique():
        mine = right[zeta[:, 0] == value]
        says_right = len(mine) > 0 and bool(mine.float().mean() > 0.5)
        here = new_zeta[:, 0] == value
        hits |= here & ((new_push[:, 0] > 0) == says_right)
    return hits


class Measured:
    """Test and validation worlds of one kind of kick, embedded once for all predictors.

    n: test worlds, and as many validation worlds.
    """

    def __init__(self, run, kind, n, device):
        self.kind = kind
        self.world = hjepa.build_world(run.config)
        config = run.config
        self.kicked, self.bases, self.t = {}, {}, {}
        for split, seed in (("test", config.test_seed), ("validation", config.validation_seed)):
            kicked = latent_world.draw(self.world, config, n, kind, seed, "latent", device)
            self.kicked[split] = kicked
            self.bases[split], self.t[split] = latent_training.embedded(run, kicked)
        self.futures = futures(run, self.world, self.kicked["test"])
        self.model = run.model
        self.told = None                        # D of the told one, (n,), on the CPU

    def base(self, network, split="test"):
        """-> what this predictor starts from (n, D)."""
        return self.bases[split][network.variant.base]

    @torch.no_grad()
    def told_errors(self, network):
        """-> D (n,) of the predictor that knows the kick; `row` compares others with it."""
        kicked = self.kicked["test"]
        self.told, _ = network.loss(self.base(network), kicked.forces, self.t["test"], kicked.push,
                                    None)
        self.told = self.told.cpu()
        return self.told

    def row(self, network):
        """-> dict of numbers that JSON can hold, and zeta (n, d) of the right futures on the CPU,
        or None of the told one."""
        variant = network.variant
        row = {"kicks": self.kind, "name": variant.name, "family": variant.family}
        if variant.family == "told":
            errors = self.told_errors(network)
            row.update(error=errors.mean().item(), error_ci=stats.interval(errors.numpy()))
            return row, None
        kicked, p = self.kicked["test"], self.base(network)
        energies = {}
        for name, t in self.futures.items():
            energy, d, zeta = network.energy(p, kicked.forces, t)
            energies[name] = energy.cpu()
            if name == "right":
                errors, found = d.cpu(), zeta
        row.update(error=errors.mean().item(), error_ci=stats.interval(errors.numpy()))
        mine = stats.resampled_means(errors.numpy())
        bound = stats.resampled_means(self.told.numpy())
        row["over_told"] = (errors.mean() / self.told.mean()).item()
        row["over_told_ci"] = stats.percentiles(mine / bound)
        row["energy"] = energies["right"].mean().item()
        for name in OTHERS:
            row[f"energy_{name}"] = energies[name].mean().item()
        for name in ("twice", "body"):
            higher = (energies[name] > energies["right"]).float()
            row[f"apart_{name}"] = higher.mean().item()
        row.update(self.zeta_numbers(network, found))
        return row, found.cpu()

    def zeta_numbers(self, network, found):
        """found: zeta (n, d) of the right test futures -> dict: what zeta says of the true kick,
        and what a family has beside."""
        variant = network.variant
        numbers = {}
        kicked, t = self.kicked["validation"], self.t["validation"]
        p = self.base(network, "validation")
        test = self.kicked["test"]
        _, _, zeta = network.energy(p, kicked.forces, t)
        guess = guess_from_neighbours(zeta.cpu(), kicked.push.cpu(), found.cpu())
        numbers["kick_r2"] = explained(guess, test.push.cpu())
        if variant.family == "discrete":
            numbers["used"] = len(found.unique())
            if self.kind == "two" and network.count > 1:
                hits = assigned(zeta, kicked.push, found, test.push).cpu()
                numbers["assigned"] = hits.float().mean().item()
                numbers["assigned_ci"] = stats.interval(hits.numpy())
        if variant.family in ("vector", "noisy"):
            quick = network.amortised(self.base(network), test.forces, self.t["test"])
            numbers["amortised"] = quick.mean().item()
        if variant.family == "noisy":
            numbers.update(self.drawn(network))
        return numbers

    @torch.no_grad()
    def drawn(self, network):
        """-> dict: D of one future that is drawn, zeta ~ N(0, 1), and of the best of DRAWN."""
        p, t, forces = self.base(network), self.t["test"], self.kicked["test"].forces
        gen = hjepa.generator(0, f"drawn futures, {self.kind}")
        errors = []
        for _ in range(DRAWN):
            zeta = torch.randn(len(p), network.size, generator=gen).to(p.device)
            errors.append((network(p, forces, zeta) - t).square().mean(-1))
        errors = torch.stack(errors)
        return {"drawn": errors.mean().item(), "best_drawn": errors.amin(0).mean().item()}

    def first_worlds(self, pushes, worlds):
        """pushes (M, 2) -> bases (worlds M, D), forces and t of the first test worlds, each under
        each push, world by world."""
        kicked = self.kicked["test"]
        worlds = min(worlds, len(kicked.clip))
        many = len(pushes)
        clip = kicked.clip[:worlds].repeat_interleave(many, 0)
        forces = kicked.forces[:worlds].repeat_interleave(many, 0)
        bases = {name: base[:worlds].repeat_interleave(many, 0)
                 for name, base in self.bases["test"].items()}
        push = pushes.to(clip.device).repeat(worlds, 1)
        future = latent_world.future_of(self.world, clip, forces, push)
        return bases, forces, latent_world.embed(self.model, self.world, future)

    def map_of(self, networks):
        """-> dict name -> energy (GRID, GRID), rows from the lowest push along y to the highest: of
        the true futures of all kicks in a square, a mean over worlds."""
        axis = torch.linspace(-REACH, REACH, GRID) * latent_world.SIZE
        pushes = torch.cartesian_prod(axis, axis).flip(1)                 # y changes slowest
        bases, forces, t = self.first_worlds(pushes, MAP_WORLDS)
        found = {}
        for name, network in networks.items():
            if network.variant.family != "told":
                energy, _, _ = network.energy(bases[network.variant.base], forces, t)
                energy = energy.unflatten(0, (-1, GRID * GRID)).mean(0)
                found[name] = energy.unflatten(0, (GRID, GRID)).cpu().numpy()
        return found

    def line_of(self, networks):
        """-> kicks (LINE,) from left to right, in sizes, and dict name -> energy (LINE,) of the
        true futures of these kicks: a mean over worlds, of discrete zetas."""
        axis = torch.linspace(-REACH, REACH, LINE)
        pushes = torch.stack([latent_world.SIZE * axis, torch.zeros(LINE)], 1)
        bases, forces, t = self.first_worlds(pushes, WORLDS_ON_LINE)
        found = {}
        for name, network in networks.items():
            if network.variant.family == "discrete":
                energy, _, _ = network.energy(bases[network.variant.base], forces, t)
                found[name] = energy.unflatten(0, (-1, LINE)).mean(0).cpu().numpy()
        return axis.numpy(), found
