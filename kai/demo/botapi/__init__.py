"""A strict stand-in for Telegram's Bot API: one bot, its people, and the faults of a bad day, on loopback."""
