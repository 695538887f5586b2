"""Folders and archives under one set of names; archives that mean harm or are cut are refused in one line."""

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxmlic.data.image import decode_image
from jaxmlic.data.prepare.sources import archives
from jaxmlic.data.prepare.sources.files import Files, Pixels
from jaxmlic.errors import UserError

CONTENT = {"a/x.txt": b"one\r\n", "a/b/long name.jpg": bytes(range(256)) * 40, "é.txt": b"", "z": b"\xef\xbb\xbfbom"}


def write_tar(path, content=CONTENT, mode="w", links=()):
    with tarfile.open(path, mode) as archive:
        for name, data in content.items() if isinstance(content, dict) else content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def write_zip(path, content=CONTENT, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("a")
        for name, data in content.items() if isinstance(content, dict) else content:
            archive.writestr(name, data)
    return path


def write_folder(path, content=CONTENT):
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


KINDS = {
    "folder": write_folder,
    "x.tar": write_tar,
    "x.tar.gz": lambda path: write_tar(path, mode="w:gz"),
    "x.tgz": lambda path: write_tar(path, mode="w:gz"),
    "x.tar.xz": lambda path: write_tar(path, mode="w:xz"),
    "x.tar.bz2": lambda path: write_tar(path, mode="w:bz2"),
    "x.zip": write_zip,
    "stored.zip": lambda path: write_zip(path, method=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same(tmp_path, kind):
    with Files([KINDS[kind](tmp_path / kind)], scratch=tmp_path / "scratch") as files:
        assert files.names == sorted(CONTENT)
        assert {name: files[name].read() for name in files} == CONTENT
        assert files.text("z") == "bom" and files.text("a/x.txt") == "one\r\n"
        assert files.ending("x.txt") == ["a/x.txt"] and files.one("b/long name.jpg", "it") == "a/b/long name.jpg"
        with ThreadPoolExecutor(8) as pool:
            reads = list(pool.map(lambda name: files[name].read(), [*CONTENT] * 50))
        assert reads == [*CONTENT.values()] * 50
    scratch = tmp_path / "scratch"
    assert not scratch.exists() or os.listdir(scratch) == []


def test_state_changes_with_the_file(tmp_path):
    path = write_folder(tmp_path / "f") / "z"
    with Files([tmp_path / "f"]) as files:
        before = files["z"].state()
        os.utime(path, ns=(1, 1))
        assert files["z"].state() != before
        path.unlink()
        assert files["z"].state() == []
        with pytest.raises(UserError, match="z cannot be read"):
            files.read("z")


def test_archives_in_a_folder_are_opened_and_equal_files_may_repeat(tmp_path):
    folder = write_folder(tmp_path / "f")
    write_zip(folder / "same.zip")
    write_tar(folder / "more.tar", {"new": b"1"})
    with Files([folder]) as files:
        assert files.names == sorted([*CONTENT, "new"])
    write_tar(folder / "other.tar", {"z": b"not the same"})
    with pytest.raises(UserError, match=r"z is in .* too, with another content"):
        Files([folder])


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "..", "C:\\x", "..\\x"])
@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_names_that_lead_out(tmp_path, kind, name):
    path = (write_tar if kind == "x.tar" else write_zip)(tmp_path / kind, {"ok": b"1", name: b"evil"})
    with pytest.raises(UserError, match="leads out of the archive: refused"):
        Files([path])
    assert sorted(os.listdir(tmp_path)) == [kind]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_links_out_of_an_archive(tmp_path, target, kind):
    path = write_tar(tmp_path / "x.tar", links=[("a/link", target, kind)])
    with pytest.raises(UserError, match="leads out of the archive"):
        Files([path])


def test_links_inside_an_archive_are_the_file(tmp_path):
    links = [("a/soft", "x.txt", tarfile.SYMTYPE), ("hard", "a/x.txt", tarfile.LNKTYPE)]
    with Files([write_tar(tmp_path / "x.tar", links=links)]) as files:
        assert files.read("a/soft") == files.read("hard") == b"one\r\n"


def test_symbolic_links_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link is a symbolic link"):
        Files([tmp_path / "x.zip"])


@pytest.mark.parametrize("folder", [False, True])
def test_links_out_of_a_folder(tmp_path, folder):
    source = write_folder(tmp_path / "f")
    secret = tmp_path / "secret"
    secret.mkdir() if folder else secret.write_bytes(b"1")
    (source / "a" / "link").symlink_to(secret)
    with pytest.raises(UserError, match=r"a/link: a link out of the folder, to .*secret"):
        Files([source])


def test_a_link_inside_a_folder_is_fine(tmp_path):
    source = write_folder(tmp_path / "f")
    (source / "link").symlink_to(source / "z")
    with Files([source]) as files:
        assert files.read("link") == CONTENT["z"]


# The last 40 % of a small plain tar file are padding.
CUTS = [(kind, share) for kind in KINDS if kind != "folder" for share in (0.0, 0.3, 0.55, 0.999)]
CUTS.remove(("x.tar", 0.999))


@pytest.mark.parametrize(("kind", "share"), CUTS)
def test_truncated_archives(tmp_path, kind, share):
    path = KINDS[kind](tmp_path / kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="truncated or not an archive of its kind"):
        Files([path], scratch=tmp_path)


def test_a_damaged_member_of_a_zip(tmp_path):
    path = write_zip(tmp_path / "x.zip", method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(bytes(range(256)) * 2, bytes(512), 1))
    with Files([path]) as files, pytest.raises(OSError, match=r"damaged in x\.zip"):
        files["a/b/long name.jpg"].read()


def test_one_name_twice_in_an_archive(tmp_path):
    twice = [("x", b"1"), ("x", b"2")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "x.zip", twice)
    for path in (write_tar(tmp_path / "x.tar", twice), tmp_path / "x.zip"):
        with pytest.raises(UserError, match="x is in it twice, with different contents"):
            Files([path])
    with Files([write_tar(tmp_path / "y.tar", [("x", b"1"), ("x", b"1")])]) as files:
        assert files.read("x") == b"1"


def test_published_checksums(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "owner.tar")
    data = path.read_bytes()
    monkeypatch.setitem(archives.PUBLISHED, "owner.tar", (len(data), hashlib.sha256(data).hexdigest()))
    Files([path]).__exit__()
    changed = data.replace(b"one", b"two")
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"its SHA-256 is not .* --no-checksums"):
        Files([path])
    path.write_bytes(data + bytes(512))
    with pytest.raises(UserError, match=f"its owner's file has {len(data):,}"):
        Files([tmp_path])
    with Files([path], checksums=False) as files:
        assert files.names == sorted(CONTENT)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        Files([tmp_path / "nowhere"])
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match="not an archive"):
        Files([tmp_path / "x.rar"])
    with Files([write_folder(tmp_path / "f", CONTENT | {"l1.txt": b"a\n\xff", "q/x.txt": b""})]) as files:
        with pytest.raises(UserError, match=r"l1.txt:2: not UTF-8"):
            files.text("l1.txt")
        with pytest.raises(UserError, match=r"x.txt is there twice, as a/x.txt and q/x.txt"):
            files.one("x.txt", "the list")
        with pytest.raises(UserError, match=r"no y.txt there \(the list\)"):
            files.one("y.txt", "the list")


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_no_space_to_decompress(tmp_path, monkeypatch, opener):
    path = tmp_path / ("x.tar.gz" if opener is gzip.open else "x.tar.xz")
    with opener(path, "wb") as file:
        file.write(write_tar(tmp_path / "x.tar").read_bytes())

    class Full:
        def write(self, block):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(UserError, match=r"cannot be decompressed \(No space left on device\)"):
        Files([path], scratch=tmp_path)


def test_pixels_are_read_as_png():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(Pixels(pixels).read()), pixels)
    assert Pixels(pixels).state() == Pixels(pixels.copy()).state() != Pixels(pixels[::-1]).state()


def three_images(tmp_path, **change):
    """A tar of three members; `change` sets attributes of the second."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("./c/1.jpg", "./c/2.jpg", "./c/3.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 600
            if name == "./c/2.jpg":
                for field, value in change.items():
                    setattr(info, field, value)
            tar.addfile(info, io.BytesIO(bytes([65]) * 600) if info.isreg() else None)
    return path


def test_a_tar_damaged_in_the_middle_does_not_just_end_there(tmp_path):
    path = three_images(tmp_path)
    data = path.read_bytes()
    second = 512 + 1024
    for broken in (b"X" + data[second + 1 : second + 512], bytes(512)):
        path.write_bytes(data[:second] + broken + data[second + 512 :])
        with pytest.raises(UserError, match="no header at byte 1,536"):
            Files([path])


@pytest.mark.parametrize("size", [b"-0000001000\0", b"77777777777\0", b"\x80" + b"\x00" * 3 + b"\x7f" * 8])
def test_a_tar_header_that_lies_about_a_size(tmp_path, size):
    path = three_images(tmp_path)
    data = bytearray(path.read_bytes())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or not an archive"):
        Files([path])


def test_links_in_a_tar_are_followed_or_told(tmp_path):
    path = three_images(tmp_path, type=tarfile.SYMTYPE, linkname="1.jpg", size=0)
    with Files([path]) as files:
        assert files.read("c/2.jpg") == files.read("c/1.jpg")
    path = three_images(tmp_path, type=tarfile.SYMTYPE, linkname="no.jpg", size=0)
    with Files([path]) as files:
        assert files.names == ["c/1.jpg", "c/2.jpg", "c/3.jpg"]
        with pytest.raises(UserError, match=r"c/2\.jpg cannot be read \(a link to c/no\.jpg"):
            files.read("c/2.jpg")


def test_a_link_to_nothing_in_a_folder_is_told(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    with Files([tmp_path]) as files, pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        files.read("a.jpg")


def test_a_sparse_member_is_refused(tmp_path):
    path = three_images(tmp_path)
    data = bytearray(path.read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(UserError, match="holes"):
        Files([path])


def test_a_zip_with_a_damaged_directory(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("a", "b", "c"):
            packed.writestr(name, name)
    data = path.read_bytes()
    first, end = data.find(b"PK\1\2"), data.find(b"PK\5\6")
    version = data[: first + 6] + b"\xff\0" + data[first + 8 :]
    nameless = data[: first + 28] + b"\0\0\1\0" + data[first + 32 :]
    late = data[: end + 12] + (47).to_bytes(4, "little") + data[end + 16 :]  # only the last entry's 47 bytes
    for broken, part in ((version, "version"), (nameless, ""), (late, "1 entries where the end record says 3")):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=f"truncated or not an archive.*{part}"):
            Files([path])
