"""The codec: encoders, vector quantizer, checkpoints, model card, and statistics of its prefixes."""
