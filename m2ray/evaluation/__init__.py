"""Evaluation: ablation conditions, their runner, and the rows that it writes."""
