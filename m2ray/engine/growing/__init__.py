"""Sweeps that grow: more trials and seeds, and fresh slices of the confirm part."""
