"""What needs GitHub's API, and the token for it."""
