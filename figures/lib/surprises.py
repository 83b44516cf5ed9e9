"""How much a film surprises a model: the errors of its predictions, clip by clip."""
import torch


@torch.no_grad()
def film_surprise(run, world, clip, film, forces, device, chunk=512):
    """clip (n, T, bodies, 4), film (n, K T, bodies, 4), forces (n, K, A) -> squared error of P1 for
    each clip (n, K), of P2 (n,); numpy."""
    model = run.model
    short, macro = [], []
    clip_frames = clip.shape[1]
    for start in range(0, len(clip), chunk):
        some = slice(start, start + chunk)
        shape = forces[some].shape[:2]                                    # (n, K)
        later = film[some].unflatten(1, (-1, clip_frames))
        clips = torch.cat([clip[some][:, None], later], 1).to(device)
        obs = world.observe(clips)
        force = forces[some].to(device)
        z1, _ = model.context(obs[:, :-1].flatten(0, 1))
        t1, t2 = model.target(obs[:, 1:].flatten(0, 1))
        p1 = model.rollout(z1, force.flatten(0, 1)[:, None])[:, 0]
        _, z2 = model.context(obs[:, 0])
        p2 = model.jump(z2, force)
        error1 = (p1 - t1).unflatten(0, shape)
        error2 = p2 - t2.unflatten(0, shape)[:, -1]
        short.append(error1.square().mean(-1).cpu())
        macro.append(error2.square().mean(-1).cpu())
    return torch.cat(short).double().numpy(), torch.cat(macro).double().numpy()


def wins(a, b):
    """1 where a > b, 0.5 where equal, else 0."""
    return (a > b) + 0.5 * (a == b)
