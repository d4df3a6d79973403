#!/usr/bin/env python3
"""hub.py MMX SHARED WORK TEST_HUB
The official client and mmx against the tests' hub: what one uploads the other downloads, and the hub holds the same."""
import os, shutil, subprocess, sys, filecmp

os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, export, finish, mmx

server = subprocess.Popen([sys.argv[4], "0"], stderr=subprocess.PIPE, text=True)
ENDPOINT = server.stderr.readline().strip()
os.environ["HF_ENDPOINT"] = ENDPOINT
os.environ["HF_HOME"] = os.path.join(WORK, "hf-home")
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

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


def opened(model, **more):
    """The path of a model as mmx opens it, and how many files the hub was asked for meanwhile."""
    before = downloads()
    return mmx("inspect", model, env={**env, **more})["path"], downloads() - before


def downloads():
    import urllib.request

    return int(urllib.request.urlopen(f"{ENDPOINT}/_downloads").read())


@check("huggingface_hub: what mmx keeps of a model it finds offline, whole, and counts as its own cache")
def _():
    own = os.path.join(WORK, "hf-cache")
    path, fetched = opened("hf:me/from-mmx@v2", HF_HUB_CACHE=own)
    assert fetched and path.startswith(os.path.join(own, "models--me--from-mmx", "snapshots")), path
    names = sorted(os.listdir(path))
    before = downloads()
    for name in names:
        again = huggingface_hub.hf_hub_download("me/from-mmx", name, revision="v2", endpoint=ENDPOINT, token="hf_test", cache_dir=own)
        assert os.path.samefile(again, os.path.join(path, name)), again
        offline = huggingface_hub.try_to_load_from_cache("me/from-mmx", name, revision="v2", cache_dir=own)
        assert offline and os.path.samefile(offline, again), offline
    assert downloads() == before, "nothing is fetched twice"
    cache = huggingface_hub.scan_cache_dir(own)
    assert not cache.warnings, cache.warnings
    repo = next(r for r in cache.repos if r.repo_id == "me/from-mmx")
    return f"{len(names)} files; {repo.size_on_disk} bytes, {len(repo.revisions)} revision"


@check("mmx: what huggingface_hub keeps it uses without the network, and nothing is fetched twice")
def _():
    back = snapshot_download("me/from-official", endpoint=ENDPOINT, token="hf_test")
    path, fetched = opened("hf:me/from-official")
    assert path.startswith(back) and fetched == 0, (path, back, fetched)
    path, _ = opened("hf:me/from-official", HF_HUB_OFFLINE="1")
    assert path.startswith(back), path
    return os.path.basename(path)


@check("mmx: a server whose certificate the system's authorities do not know is refused, one of SSL_CERT_FILE is trusted")
def _():
    import socket, ssl, threading

    key, cert = os.path.join(WORK, "key.pem"), os.path.join(WORK, "cert.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept():
        while True:
            client, _ = listener.accept()
            try:
                client = context.wrap_socket(client, server_side=True)
            except (ssl.SSLError, OSError):
                continue
            host, port = ENDPOINT.removeprefix("http://").split(":")
            hub = socket.create_connection((host, int(port)))
            threading.Thread(target=copy, args=(client, hub), daemon=True).start()
            threading.Thread(target=copy, args=(hub, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    https = f"https://localhost:{listener.getsockname()[1]}"
    run = lambda **more: subprocess.run([MMX, "pull", "me/from-mmx", "--out", os.path.join(WORK, "tls"), "--json"], capture_output=True, text=True,
                                        env={**os.environ, **env, "HF_ENDPOINT": https, "NO_PROXY": "localhost", **more})
    unknown, known = run(), run(SSL_CERT_FILE=cert)
    assert unknown.returncode == 1 and "certificate" in unknown.stderr.lower(), unknown.stderr
    assert known.returncode == 0, known.stderr
    return unknown.stderr.splitlines()[0][:90]


@check("huggingface_hub: a data set that it uploads is mmx's data, in the cache that both share")
def _():
    tables, local = os.path.join(SHARED, "tables"), os.path.join(WORK, "data-set")
    os.makedirs(os.path.join(local, "data"), exist_ok=True)
    shards = [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    for shard, name in zip(shards, ("texts-snappy", "texts-zstd")):
        shutil.copy(os.path.join(tables, f"{name}.parquet"), os.path.join(local, shard))
    api.create_repo("me/texts", repo_type="dataset", private=True)
    api.upload_folder(repo_id="me/texts", repo_type="dataset", folder_path=local)
    report = mmx("data", "check", "--stage", "pretrain", "hf:datasets/me/texts", env=env)
    assert report["samples"] == 24, report
    for shard in shards:
        path = hf_hub_download("me/texts", shard, repo_type="dataset", local_files_only=True)
        assert filecmp.cmp(path, os.path.join(local, shard), shallow=False), path
    back = os.path.join(WORK, "data-back")
    mmx("pull", "me/texts", "--dataset", "--out", back, env=env)
    return f"{same(local, back)} files equal"


server.terminate()
finish()
