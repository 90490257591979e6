"""`dpotool`, `python -m dpotool`, and what `accelerate launch -m dpotool` starts."""

from dpotool import interruption

interruption.install()  # before anything else is imported: Ctrl-C within the first half second prints no traceback

from dpotool.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
