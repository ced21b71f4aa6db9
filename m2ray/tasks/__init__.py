"""Tasks: episodes that two agents can only solve together, the task families, and the verifier of answers."""
