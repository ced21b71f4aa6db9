"""The family of sentences about people and places: its facts, their wordings, and the data they come from."""
