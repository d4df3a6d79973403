#!/usr/bin/env python3
"""launchers.py MMX SHARED WORK TORCHRUN MPIRUN
What people start many processes with, on `mmx train`: torchrun (also when it starts a killed run anew), Open MPI's
mpirun, srun (a stub that sets the variables Slurm sets), and mmx's own --processes. At one number of processes all of
them end with the same bits."""
import hashlib, json, os, signal, subprocess, sys, threading, time

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, finish

TORCHRUN, MPIRUN = sys.argv[4:6]
TRAIN = MMX + "-train"
HERE = os.path.join(WORK, "launchers")
os.makedirs(HERE, exist_ok=True)
# mpirun counts cores, and refuses root unless it is told
MPI = [MPIRUN, "--oversubscribe", "--bind-to", "none", "--allow-run-as-root", "-n", "2"]

SRUN = os.path.join(HERE, "srun")
with open(SRUN, "w") as file:
    file.write(r"""#!/bin/sh
# srun -n N COMMAND..: what Slurm sets, on one node
shift; n=$1; shift
export SLURM_JOB_ID=$$ SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$n SLURM_NTASKS=$n SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=$n
rank=0; pids=
while [ $rank -lt $n ]; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids="$pids $!"
  rank=$((rank + 1))
done
code=0
for pid in $pids; do wait $pid || code=$?; done
exit $code
""")
os.chmod(SRUN, 0o755)

LAUNCHERS = {
    "torchrun": [TORCHRUN, "--no-python", "--standalone", "--nproc-per-node", "2"],
    "mpirun": MPI,
    "srun": [SRUN, "-n", "2"],
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def run(command, code=0, limit=300):
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT, timeout=limit)
    assert out.returncode == code, f"{command}: exit code {out.returncode}\n{out.stdout}\n{out.stderr}"
    return out


def train(out, *more, epochs=2):
    golden = os.path.join(SHARED, "golden")
    return [
        MMX, "train", "pretrain", "--preset", "tiny", "--tokenizer", golden, "--data", os.path.join(golden, "pretrain.jsonl"),
        "--batch-size", "2", "--accum", "1", "--epochs", epochs, "--lr", "1e-3", "--max-seq-len", "64", "--dtype", "f32", "--device", "cpu",
        "--threads", "1", "--out", out, *more,
    ]  # fmt: skip


def weights(run_folder):
    """The digest of the last checkpoint's weights, and its number of steps."""
    last = sorted(name for name in os.listdir(run_folder) if name.startswith("checkpoint-"))[-1]
    with open(os.path.join(run_folder, last, "model.safetensors"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest(), int(last.rsplit("-", 1)[1])


for name, launcher in LAUNCHERS.items():

    @check(f"{name}: processes meet and add up")
    def _(launcher=launcher):
        out = run([*launcher, TRAIN, "meet", "--mb", "1", "--json"])
        report = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("{")))
        assert report["processes"] == 2 and len(report["hosts"]) == 2, report
        return f"{report['median_ms']:.1f} ms a sum of 1 MB"


EXPECTED = []


@check("--processes 2: a run to its end, one JSON object on stdout")
def _():
    folder = os.path.join(HERE, "processes")
    out = run([*train(folder, "--processes", "2"), "--json"])
    report = json.loads(out.stdout)
    EXPECTED.append(weights(folder))
    assert report["total_steps"] == EXPECTED[0][1] > 3, report
    return f"{report['total_steps']} steps"


for name, launcher in LAUNCHERS.items():

    @check(f"{name}: trains to the same bits as --processes")
    def _(name=name, launcher=launcher):
        folder = os.path.join(HERE, f"run-{name}")
        run([*launcher, *train(folder)])
        assert weights(folder) == EXPECTED[0], f"{weights(folder)}, expected {EXPECTED[0]}"


@check("torchrun --max-restarts: a killed rank, and the same bits at the end")
def _():
    folder = os.path.join(HERE, "restarted")
    more = ["--save-every", "1", "--resume"]
    whole = os.path.join(HERE, "whole")
    run([*LAUNCHERS["torchrun"], *train(whole, *more, epochs=20)])
    command = [TORCHRUN, "--no-python", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", *train(folder, *more, epochs=20)]
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    killed = []

    def kill():
        while child.poll() is None and not killed:
            if os.path.isdir(folder) and any(name.startswith("checkpoint-") for name in os.listdir(folder)):
                for pid in filter(str.isdigit, os.listdir("/proc")):
                    try:
                        with open(f"/proc/{pid}/environ", "rb") as file:
                            variables = file.read().split(b"\0")
                        with open(f"/proc/{pid}/cmdline", "rb") as file:
                            words = file.read().split(b"\0")
                    except OSError:
                        continue
                    if b"RANK=1" in variables and folder.encode() in words:
                        os.kill(int(pid), signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    out, err = child.communicate(timeout=300)
    thread.join()
    assert child.returncode == 0, f"exit code {child.returncode}\n{out}\n{err}"
    assert killed, "expected a rank to kill before the end"
    assert "is gone: it was killed or crashed" in err, err
    assert weights(folder) == weights(whole)
    return f"{weights(folder)[1]} steps"


finish()
