"""Boxes with laws of their own."""


def same_box(kind, config):
    """A subclass of hjepa.World, Config -> the box of that config with the laws of that class."""
    return kind(config.masses, config.radius, config.dt, config.substeps, config.force_limit)
