"""Boxes with laws of their own."""
import hjepa


class Ghosts(hjepa.World):
    """The same box and the same forces, but bodies fly through each other."""

    def _collide(self, x, v, a, dt, contact):
        pass


def same_box(kind, config):
    """A subclass of hjepa.World, Config -> the box of that config with the laws of that class."""
    return kind(config.masses, config.radius, config.dt, config.substeps, config.force_limit)
