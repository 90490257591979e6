"""`python -m dpotool`, and what `accelerate launch -m dpotool` starts."""

from dpotool.cli.app import main

main()
