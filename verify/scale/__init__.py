"""Many devices: where parameters lie, what the devices tell each other, and training on them."""
