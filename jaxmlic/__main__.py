"""`python -m jaxmlic <command>`."""

from jaxmlic.cli.main import main

if __name__ == "__main__":
    main()
