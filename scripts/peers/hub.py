#!/usr/bin/env python3
"""hub.py MMX SHARED WORK TEST_HUB
The official client and mmx against the tests' hub: what one uploads the other downloads, and the hub holds the same."""
import os, subprocess, sys, filecmp

os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, export, finish, mmx

server = subprocess.Popen([sys.argv[4], "0"], stderr=subprocess.PIPE, text=True)
ENDPOINT = server.stderr.readline().strip()
os.environ["HF_ENDPOINT"] = ENDPOINT
os.environ["HF_HOME"] = os.path.join(WORK, "hf-home")
import huggingface_hub
from huggingface_hub import HfApi, snapshot_download

api = HfApi(endpoint=ENDPOINT, token="hf_test")
env = {"HF_ENDPOINT": ENDPOINT, "HF_TOKEN": "hf_test"}
folder = os.path.join(WORK, "hub-export")
export(os.path.join(SHARED, "golden/minimind3"), "--tokenizer", os.path.join(SHARED, "golden"), "--hf", "bf16", "--gguf", "q8_0", out=folder)


MANIFEST = ".mmx-files.json"  # what mmx wrote there, for the next export; not sent


def same(one, other):
    """Every file of a folder is in the other, byte for byte."""
    n = 0
    for root, _, names in os.walk(one):
        for name in names:
            if name == MANIFEST:
                continue
            path = os.path.join(root, name)
            twin = os.path.join(other, os.path.relpath(path, one))
            assert filecmp.cmp(path, twin, shallow=False), f"{path} and {twin} differ"
            n += 1
    return n


def listing(repo):
    files = api.list_repo_tree(repo, recursive=True)
    return sorted((f.path, f.size, f.blob_id, f.lfs and f.lfs.sha256) for f in files if hasattr(f, "blob_id"))


@check(f"huggingface_hub {huggingface_hub.__version__}: what mmx pushes it downloads")
def _():
    report = mmx("push", folder, "me/from-mmx", "--private", env=env)
    info = api.model_info("me/from-mmx", files_metadata=True)
    assert info.private and info.sha == report["commit"], info
    back = snapshot_download("me/from-mmx", endpoint=ENDPOINT, token="hf_test", local_dir=os.path.join(WORK, "official-back"))
    return f"{same(folder, back)} files equal"


@check("huggingface_hub: what it uploads mmx pulls, and the hub holds the same for both")
def _():
    api.create_repo("me/from-official", private=True)
    api.upload_folder(repo_id="me/from-official", folder_path=folder, ignore_patterns=[MANIFEST])
    back = os.path.join(WORK, "mmx-back")
    mmx("pull", "me/from-official", "--out", back, env=env)
    ours, theirs = listing("me/from-mmx"), listing("me/from-official")
    assert ours == theirs, (ours, theirs)
    return f"{same(folder, back)} files equal, {len(ours)} entries with the same ids"


@check("huggingface_hub: branches and a second push")
def _():
    mmx("push", os.path.join(folder, "hf-bf16"), "me/from-mmx", "--revision", "v2", env=env)
    names = {b.name for b in api.list_repo_refs("me/from-mmx").branches}
    assert {"main", "v2"} <= names, names
    before = api.model_info("me/from-mmx").sha
    mmx("push", folder, "me/from-mmx", env=env)
    assert api.model_info("me/from-mmx").sha == before, "nothing changed, so no commit"
    api.upload_folder(repo_id="me/from-mmx", folder_path=folder)
    return ""


server.terminate()
finish()
