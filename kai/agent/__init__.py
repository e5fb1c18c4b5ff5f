"""kai-agent@USER: the supervisor that drives one user's inner agent."""
