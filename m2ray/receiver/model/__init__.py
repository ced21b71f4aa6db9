"""The frozen language model: its own forward pass, kept prompt prefixes, and decoding."""
