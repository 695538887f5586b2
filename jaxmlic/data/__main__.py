"""`python -m jaxmlic.data prepare NAME ...`, the same as `jaxmlic data prepare NAME ...`."""

import sys

from jaxmlic.data.prepare import main

if __name__ == "__main__":
    sys.exit(main())
