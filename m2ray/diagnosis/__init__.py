"""Diagnose codecs: where the message is lost, whether B reads it, and success against bits per message."""
