"""Check that m2ray's logits of a receiver equal those of the model's plain forward pass."""
