"""Sweeps on Ray: the cluster, Tune's search, trials, the evaluator pool and the stages."""
