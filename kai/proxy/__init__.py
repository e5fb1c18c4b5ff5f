"""kai-proxy: the one unit that holds keys and speaks to the internet for the agents."""
