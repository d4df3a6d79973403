"""The libraries that a 64-bit Mach-O program loads, a line each; fails unless it is signed, as arm64 Macs demand.

    python3 scripts/mach_o.py FILE
"""

import pathlib
import struct
import sys

# <mach-o/loader.h>
MAGIC, ARM64 = 0xFEEDFACF, 0x0100000C
LOADS_DYLIB, SIGNATURE = (0xC, 0x80000018, 0x8000001F), 0x1D

data = pathlib.Path(sys.argv[1]).read_bytes()
magic, cpu, _, _, commands = struct.unpack_from("<IIIII", data)
if (magic, cpu) != (MAGIC, ARM64):
    sys.exit(f"error: {sys.argv[1]}: expected a program for arm64, found another")
at, signed = 32, False
for _ in range(commands):
    command, size = struct.unpack_from("<II", data, at)
    signed = signed or command == SIGNATURE
    if command in LOADS_DYLIB:
        (name,) = struct.unpack_from("<I", data, at + 8)
        print(data[at + name : at + size].split(b"\0")[0].decode())
    at += size
if not signed:
    sys.exit(f"error: {sys.argv[1]}: expected a signature, found none")
