"""The demonstration: one small network on real data, in every format, served by both servers."""
