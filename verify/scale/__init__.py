"""Many devices: where parameters lie, what the devices tell each other, and training on them."""
"""On more than one device, and in more than one process: python -m verify.scale train."""
