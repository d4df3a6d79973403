"""The declarations of the module are those of mmx.h."""

import ctypes
import re
import unittest
from pathlib import Path

import common
from mmx import _library as lib

HEADER = Path(common.ROOT, "src", "capi", "include", "mmx.h").read_text(encoding="utf-8")
CODE = re.sub(r"//[^\n]*|/\*.*?\*/", "", HEADER, flags=re.S)
TYPES = {
    "bool": ctypes.c_bool,
    "size_t": ctypes.c_size_t,
    "double": ctypes.c_double,
    "uint64_t": ctypes.c_uint64,
    "const char *": ctypes.c_char_p,
    "const char *const *": ctypes.POINTER(ctypes.c_char_p),
    "mmx_finish ": ctypes.c_int,
}


def struct(name):
    """Names and C types of a struct's fields."""
    (body,) = re.findall(r"typedef struct \{([^}]*)\} %s;" % name, CODE)
    fields = (field.strip() for field in body.split(";"))
    return [re.fullmatch(r"(.*?)(\w+)", field, re.S).groups() for field in fields if field]


def enum(name):
    """Values of an enum, in order."""
    (body,) = re.findall(r"typedef enum \{([^}]*)\} %s;" % name, CODE)
    return [(key, int(value)) for key, value in re.findall(r"(\w+) = (\d+)", body)]


class Header(unittest.TestCase):
    def test_structs_have_the_headers_fields(self):
        for name, declared in [
            ("mmx_model_options", lib.ModelOptions),
            ("mmx_session_options", lib.SessionOptions),
            ("mmx_generate_options", lib.GenerateOptions),
            ("mmx_generated", lib.Generated),
        ]:
            expected = [(field, TYPES.get(kind, TYPES.get(kind.strip()))) for kind, field in struct(name)]
            self.assertEqual(expected, [(field[0], field[1]) for field in declared._fields_], name)
            self.assertGreater(len(expected), 2)

    def test_statuses_and_finishes_have_the_headers_values(self):
        for key, value in enum("mmx_status"):
            self.assertEqual(getattr(lib, key.replace("MMX_STATUS_", "")), value)
        finishes = [(f"MMX_FINISH_{name.upper()}", value) for value, name in enumerate(lib.FINISHES)]
        self.assertEqual(enum("mmx_finish"), finishes)

    def test_functions_take_what_the_header_says(self):
        declared = dict(re.findall(r"(mmx_\w+)\(([^)]*)\);", CODE))
        self.assertGreater(len(declared), len(lib.FUNCTIONS) - 1)
        for name, (_, takes) in lib.FUNCTIONS.items():
            given = [one.strip() for one in declared[name].split(",") if one.strip() != "void"]
            self.assertEqual(len(takes), len(given), name)
            for kind, text in zip(takes, given):
                for c, declared_as in [("size_t ", ctypes.c_size_t), ("bool ", ctypes.c_bool)]:
                    if text.startswith(c) and "*" not in text:
                        self.assertIs(kind, declared_as, f"{name}: {text}")


if __name__ == "__main__":
    unittest.main()
