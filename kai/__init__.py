"""Kai: AI agents on your own Linux host, reached through Telegram."""

__version__ = "0.1.0"
