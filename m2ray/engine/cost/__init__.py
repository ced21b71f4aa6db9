"""What a sweep costs: estimate, forecast of the remaining time, and budget."""
