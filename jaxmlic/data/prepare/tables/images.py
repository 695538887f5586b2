"""Where the images of a user's table lie: folders on this machine, or one in a bucket."""

import errno
import os
import posixpath
import re
from pathlib import Path

from jaxmlic import storage
from jaxmlic.data.prepare.sources.files import BucketFile, File, LocalFile
from jaxmlic.data.prepare.tables.annotations import Mistake
from jaxmlic.data.prepare.tables.sheets import IMAGE_SUFFIXES
from jaxmlic.errors import UserError

IMAGE_FOLDERS = ("", "images", "JPEGImages", "Images")


def find_images(folder: Path, images: str | None) -> "Images | BucketImages":
    """The images of a table in `folder`: those of the folder `images` if it is given, which may be in a bucket."""
    return BucketImages(images) if images is not None and storage.is_bucket(images) else Images(folder, images)


class Images:
    """Finds images by the names in a table, with one listing per folder instead of a look-up per guess."""

    def __init__(self, folder: Path, images: str | None):
        if images is not None and not Path(images).is_dir():
            raise UserError(f"{images}: no such folder: --images names the folder of the images")
        roots = [images] if images is not None else [folder / name for name in IMAGE_FOLDERS]
        self._roots = [os.path.abspath(root) for root in roots]
        self._free = images is not None
        self._listings = {}
        self.looked_in = str(images) if images is not None else f"{folder} or its images/, JPEGImages/, Images/"

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: NUL, half a surrogate pair
                self._listings[folder] = frozenset()
            except OSError as error:
                if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                    self._listings[folder] = frozenset()
                    return self._listings[folder]
                raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
        return self._listings[folder]

    def has(self, name: str) -> bool:
        """Whether `find` finds it."""
        try:
            return bool(name) and self.find(name) is not None
        except Mistake:
            return False

    def find(self, name: str) -> str | None:
        """Absolute path of the image, None if there is none; Mistake if the name leads out of the folder."""
        name = name.replace("\\", "/")
        absolute = os.path.isabs(name) or re.match(r"[A-Za-z]:", name)
        inside = False
        for root in self._roots:
            path = os.path.normpath(os.path.join(root, name))
            if (absolute and not self._free) or not path.startswith(root.rstrip(os.sep) + os.sep):
                continue
            inside = True
            folder, base = os.path.split(path)
            listing = self._listing(folder)
            if base in listing:
                return path
            if not base.lower().endswith(IMAGE_SUFFIXES):
                for suffix in IMAGE_SUFFIXES:
                    for spelling in (suffix, suffix.upper()):
                        if base + spelling in listing:
                            return path + spelling
        if not inside:
            raise Mistake(f"{name!r} leads out of the folder of the images: give that folder with --images")
        return None

    def file(self, path: str) -> File:
        """What `find` found."""
        return LocalFile(path)


class BucketImages:
    """Finds images in a folder of a bucket, by one listing of all that is in it."""

    def __init__(self, images: str):
        self.looked_in = images.rstrip("/")
        self._there = storage.listing(images)
        if not self._there:
            raise UserError(f"{images}: no such folder: --images names the folder of the images")

    def has(self, name: str) -> bool:
        """Whether `find` finds it."""
        try:
            return bool(name) and self.find(name) is not None
        except Mistake:
            return False

    def find(self, name: str) -> str | None:
        """The image's path, None if there is none; Mistake if the name leads out of it."""
        place = posixpath.normpath(name.replace("\\", "/").removeprefix(f"{self.looked_in}/"))
        if place.startswith(("/", "../")) or "://" in name.removeprefix(f"{self.looked_in}/"):
            raise Mistake(f"{name!r} leads out of the folder of the images: give that folder with --images")
        endings = [""] if place.lower().endswith(IMAGE_SUFFIXES) else ["", *IMAGE_SUFFIXES]
        endings += [ending.upper() for ending in endings[1:]]
        found = next((place + ending for ending in endings if place + ending in self._there), None)
        return None if found is None else f"{self.looked_in}/{found}"

    def file(self, path: str) -> File:
        """What `find` found."""
        version = self._there[path.removeprefix(f"{self.looked_in}/")]
        return BucketFile(path, version["size"], version["digest"])
