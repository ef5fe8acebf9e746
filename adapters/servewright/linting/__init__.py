"""Read the files that fleets already have, and say what a server would refuse, ignore or misread."""
