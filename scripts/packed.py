"""A folder as a zip archive for Windows, the same bytes from the same files: names in order, one date.

    python3 scripts/packed.py WHERE FOLDER OUT     FOLDER, which lies in WHERE
"""

import pathlib
import sys
import zipfile

where, folder, out = sys.argv[1:]
with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for path in sorted(pathlib.Path(where, folder).rglob("*")):
        if path.is_file():
            entry = zipfile.ZipInfo(path.relative_to(where).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), compresslevel=9)
