"""kai-timers: makes the timers of jobs; the only unit that asks PID 1 for anything."""
