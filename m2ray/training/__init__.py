"""Training: objectives, the step and its loop, schedules, trackers, and training of receivers."""
