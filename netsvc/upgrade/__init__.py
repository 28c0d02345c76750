"""Puts the program that is installed now in the place of the process that runs, without a refused connection."""
