"""A network of links, the schedules of collectives on it, their bound, their time, and their execution."""
