"""Files and folders, here or in a bucket: found, written whole or not at all, read without running anything in them.

`to_path` alone decides what a path is: a local one or an object of gs:// or s3://. Mistakes raise UserError.
"""

from jaxmlic.storage.copies import (
    Appender,
    Mirror,
    Outbox,
    copy_place,
    fetch_folder,
    listing,
    local_copy,
    send_file,
    send_folder,
)
from jaxmlic.storage.files import (
    DAMAGE,
    load_npz,
    read_json,
    reason,
    replacing,
    save_npz,
    sha256,
    write_json,
    write_text,
)
from jaxmlic.storage.paths import bucket_problem, check_writable, is_bucket, resolve, to_path

__all__ = [
    "DAMAGE",
    "Appender",
    "Mirror",
    "Outbox",
    "bucket_problem",
    "check_writable",
    "copy_place",
    "fetch_folder",
    "is_bucket",
    "listing",
    "load_npz",
    "local_copy",
    "read_json",
    "reason",
    "replacing",
    "resolve",
    "save_npz",
    "send_file",
    "send_folder",
    "sha256",
    "to_path",
    "write_json",
    "write_text",
]
