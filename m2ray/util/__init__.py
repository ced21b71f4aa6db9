"""Helpers that every other package may use: errors, files, strict YAML, plugins, text."""
