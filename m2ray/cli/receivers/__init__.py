"""Commands that fetch, check and adapt receivers."""
