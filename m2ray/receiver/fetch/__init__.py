"""Receivers fetched from package indexes and hubs."""
