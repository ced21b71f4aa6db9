"""The frozen receiver: loading, prompts, forward passes, decoding, scoring, and where its episodes come from."""
