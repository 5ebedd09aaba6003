"""Budgets of the site and of the labs' harness. `make bench` prints them; no test depends on time."""
