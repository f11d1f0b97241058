"""Controller, model workers and their clients: everything that speaks HTTP."""
