"""Linear read-outs of embeddings, and gauges of collapse."""
import hjepa
import torch


def linear(train, validation):
    """Two pairs x (N, P), y (N, Q) -> the function (..., P) -> (..., Q) that hjepa.ridge fits."""
    weight, offset = hjepa.ridge(train, validation)

    def read(x):
        return (x.double() @ weight + offset).float()
    return read


def fit_decoder(run, world, device, n=4096):
    """-> function (N, D) -> (N, 2 bodies), on the device: the place of each body in the last frame
    of a clip, read linearly from the clip's shallow target embedding.

    It is fitted to embeddings of training worlds. Its strength is chosen by how well it reads what
    P1 predicts for validation worlds, since that is its use. A read-out that is best on embeddings
    would magnify the errors of predictions: it leans on directions of hardly any variance.
    """
    config = run.config
    pairs = []
    for seed, count, name in ((config.seed, 4 * n, "t1"), (config.validation_seed, n, "p1")):
        states, forces, _ = hjepa.draw_sequences(world, config, count, seed, "decoder", device)
        z = hjepa.latents(run.model, world.observe(states), forces)[name]
        place = hjepa.probe_targets(states[:, -1, -1], config.masses)["position"]
        pairs.append((z, place))
    weight, offset = hjepa.ridge(*pairs)
    weight = weight.float().to(device)
    offset = offset.float().to(device)

    def decode(z):
        return z.float() @ weight + offset
    return decode


def gauges(z):
    """A set of embeddings (N, D) -> dict.

    dimensions; std_min, std_mean, std_max over the dimensions; correlation: the mean absolute one
    of two dimensions; rank: the effective one; std and spectrum: sorted lists.
    """
    covariance = torch.cov(z.T)
    std = covariance.diagonal().clamp_min(0).sqrt()
    correlation = covariance / (std[:, None] * std).clamp_min(1e-12)
    between = ~torch.eye(len(std), dtype=torch.bool)
    spectrum = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    return {"dimensions": len(std), "std_min": std.min().item(), "std_mean": std.mean().item(),
            "std_max": std.max().item(), "correlation": correlation[between].abs().mean().item(),
            "rank": hjepa.effective_rank(z), "std": std.sort().values.tolist(),
            "spectrum": spectrum.tolist()}


def worst_gauges(sets):
    """Several sets of embeddings (N, D) -> the smallest deviation of any dimension and the smallest
    effective rank of any set."""
    return {"std_min": min(z.std(0).min().item() for z in sets),
            "rank": min(hjepa.effective_rank(z) for z in sets)}
