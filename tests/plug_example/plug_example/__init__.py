"""What `docs/plugs.md` explains: a task family, an encoder, an objective and a condition for m2ray."""
