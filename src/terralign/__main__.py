"""`python -m terralign` is the command `terralign`."""

from terralign.cli import main

if __name__ == "__main__":
    main(prog_name="terralign")
