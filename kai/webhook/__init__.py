"""The intake of webhooks: what was accepted is on disk, and reaches the people it concerns."""
