"""kai: the operator's command."""
