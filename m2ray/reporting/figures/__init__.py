"""Figures of a sweep, and of one comparison."""
