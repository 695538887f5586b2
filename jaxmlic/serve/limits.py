"""How much a request may ask for."""

import dataclasses

from jaxmlic.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request, and of all that wait.

    Attributes:
      megabytes: of a request's body.
      megapixels: of an image, by its header, before it is decoded.
      images: of a request.
      waiting: images that wait to be labelled; a request beyond is answered 503.
      seconds: in which a request's body must have arrived.
      batch_size: images that are labelled together, by the one program that is compiled.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    images: int = 32
    waiting: int = 256
    seconds: float = 60.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if isinstance(field.default, int) else 1e-3
            if not value >= least:
                raise UserError(f"--{field.name.replace('_', '-')}={value:g}: at least {least:g}")
        if self.images > self.waiting:
            raise UserError(
                f"--images={self.images} of a request, but --waiting={self.waiting} in all: raise the latter"
            )

    @property
    def num_bytes(self) -> int:
        """Of a request's body."""
        return int(self.megabytes * 1e6)

    @property
    def num_pixels(self) -> int:
        """Of an image."""
        return int(self.megapixels * 1e6)
