"""How far two files of `mmx logits` are apart: prints the largest absolute difference, fails beyond a limit.

    python3 scripts/near_logits.py A B LIMIT
"""

import array
import json
import struct
import sys


def logits(path: str) -> "array.array[float]":
    """The numbers of the one tensor in a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        numbers = array.array("f", file.read())
    if header["logits"]["dtype"] != "F32":
        sys.exit(f"error: {path}: expected F32, found {header['logits']['dtype']}")
    return numbers


def main() -> None:
    a, b, limit = sys.argv[1:]
    one, other = logits(a), logits(b)
    if len(one) != len(other) or len(one) == 0:
        sys.exit(f"error: {a} and {b}: expected as many logits, found {len(one)} and {len(other)}")
    far = max(abs(x - y) for x, y in zip(one, other))
    # not a number is beyond every limit
    if not far <= float(limit):
        sys.exit(f"error: {a} and {b}: expected logits within {limit}, found {far:.2g}")
    print(f"{far:.1e}")


main()
