"""Layers made of layers, a file each."""
