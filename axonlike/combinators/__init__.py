"""Layers made of layers: `wire`, what is written with it, and the lifted ones."""
