"""Load on a running server, measured honestly: latency counts from the moment at which a request was meant to leave."""
