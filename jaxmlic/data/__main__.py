"""`python -m jaxmlic.data prepare NAME ...`, the same as `jaxmlic data prepare NAME ...`."""

from jaxmlic import cli

if __name__ == "__main__":
    cli.main(["data"])
