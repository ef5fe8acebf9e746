"""`python -m servewright`."""

from servewright.cli import main

main()
