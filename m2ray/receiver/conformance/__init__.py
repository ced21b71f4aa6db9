"""Does m2ray read a receiver exactly? Its numbers are held against the model's own forward pass."""
