"""`python -m raysft.cli`."""

from raysft.cli import app

if __name__ == "__main__":
    app()
