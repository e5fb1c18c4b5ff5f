"""kai-bot: everything that touches Telegram."""
