"""What every daemon shares: start, sockets, IPC, credentials, log, storage."""
