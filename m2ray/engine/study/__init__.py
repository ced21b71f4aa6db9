"""The search as an Optuna study: its file for inspection, and the sampler."""
