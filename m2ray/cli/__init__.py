"""The commands, one file per command, and what runs them."""
