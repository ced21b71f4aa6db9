"""Reports of a sweep, made from its rows: leaderboard, text reports, figures and the HTML page."""
