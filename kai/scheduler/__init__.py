"""kai-scheduler: the jobs, and what happens when their time has come."""
