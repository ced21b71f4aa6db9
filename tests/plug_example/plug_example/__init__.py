"""The plugins of docs/plugs.md: a task family, an encoder, an objective and a condition for m2ray."""
