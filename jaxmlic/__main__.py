"""`python -m jaxmlic <command>`."""

from jaxmlic import cli

if __name__ == "__main__":
    cli.main()
