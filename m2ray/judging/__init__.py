"""Judge outcomes: statistics, gates, verdicts, and the selection of configurations."""
