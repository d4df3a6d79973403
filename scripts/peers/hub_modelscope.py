#!/usr/bin/env python3
"""hub_modelscope.py MMX SHARED WORK TEST_HUB
ModelScope's client and mmx against the tests' hub, in one cache: what one fetches the other uses."""
import os, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, export, finish, mmx

server = subprocess.Popen([sys.argv[4], "0"], stderr=subprocess.PIPE, text=True)
ENDPOINT = server.stderr.readline().strip()
CACHE = os.path.join(WORK, "modelscope")
os.environ.update(MODELSCOPE_ENDPOINT=ENDPOINT, MODELSCOPE_CACHE=CACHE, HOME=os.path.join(WORK, "modelscope-home"))
os.environ.pop("HF_HUB_OFFLINE"), os.environ.pop("TRANSFORMERS_OFFLINE")
import urllib.request

import modelscope
from modelscope import snapshot_download
from modelscope.hub.file_download import model_file_download

folder = os.path.join(WORK, "modelscope-export")
export(os.path.join(SHARED, "golden/minimind3"), "--tokenizer", os.path.join(SHARED, "golden"), "--gguf", "q8_0", "--gguf", "q4_0", out=folder)
for name in ("me/one", "me/two"):
    mmx("push", folder, name, env={"HF_ENDPOINT": ENDPOINT, "HF_TOKEN": "hf_test"})


def downloads():
    return int(urllib.request.urlopen(f"{ENDPOINT}/_downloads").read())


@check(f"modelscope {modelscope.__version__}: what mmx keeps of a model it finds")
def _():
    path = mmx("inspect", "ms:me/one:q8_0")["path"]
    before = downloads()
    theirs = model_file_download("me/one", os.path.basename(path))
    assert os.path.samefile(path, theirs), (path, theirs)
    assert downloads() == before, "nothing is fetched twice"
    return os.path.relpath(path, CACHE)


@check("mmx: what modelscope keeps it uses, also without the network, and nothing is fetched twice")
def _():
    theirs = snapshot_download("me/two")
    before = downloads()
    path = mmx("inspect", "ms:me/two")["path"]
    assert os.path.dirname(path) == os.path.realpath(theirs) or os.path.samefile(os.path.dirname(path), theirs), (path, theirs)
    assert downloads() == before, "nothing is fetched twice"
    alone = mmx("inspect", "ms:me/two:q8_0", env={"MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"})["path"]
    assert os.path.dirname(alone) == os.path.dirname(path), alone
    return os.path.basename(path)


server.terminate()
finish()
