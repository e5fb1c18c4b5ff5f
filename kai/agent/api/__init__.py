"""What the inner agent can call, on a socket that only its account can open. kai-api(7) describes it."""
