"""kai-totp(8): checks the codes of users who are enrolled for TOTP."""
