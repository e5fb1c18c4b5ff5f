"""Stand-ins for `install.sh --demo` and the tests: no Telegram, no systemd, no account."""
