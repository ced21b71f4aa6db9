"""Configuration files: trainings, search spaces, gates, and the record of a sweep."""
