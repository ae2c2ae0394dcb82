"""numpy, whose OpenBLAS is native code with wider vectors than WebAssembly has: the ceiling, not a rival."""
import json
import os
import platform
import sys
import time

job = json.loads(sys.argv[1])
os.environ["OPENBLAS_NUM_THREADS"] = str(job["threads"])
sys.path.insert(0, job["home"] + "/peers/numpy")
import numpy as np  # noqa: E402: the number of threads is read at import

QUICK = job["quick"]
MS = 200 if QUICK else 1000


def report(message):
    print("@bench " + json.dumps(message), flush=True)


def timed(run):
    """The protocol of src/cli/bench_timing.ts."""
    for most in (60, MS):
        runs = []
        start = time.perf_counter()
        while True:
            elapsed = (time.perf_counter() - start) * 1e3
            if (elapsed >= most and len(runs) >= 7) or (elapsed >= 4 * most and len(runs) >= 3):
                break
            before = time.perf_counter()
            run()
            runs.append((time.perf_counter() - before) * 1e3)
    count = min(len(runs), 15)
    bounds = [i * len(runs) // count for i in range(count + 1)]
    batches = [sum(runs[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:])]
    return {"least": min(runs), "batches": batches}


def values(*shape):
    return np.random.default_rng(1).normal(0, 0.5, shape).astype(np.float32)


report({"kind": "engine", "engine": "Python " + platform.python_version(), "version": np.__version__})
sizes = [512, 1024] if QUICK else [256, 512, 1024, 2048]
products = [(size, size, size) for size in sizes] + [(128, 4096, 4096)]
vectors = [(1, 4096, 4096)] if QUICK else [(1, 1024, 1024), (1, 4096, 4096), (1, 4096, 11008)]
for m, k, n in products + vectors:
    topic = "gemv" if m == 1 else "gemm"
    if topic not in job["topics"]:
        continue
    weight = values(n, k)
    if m == 1:
        x = values(k)
        out = np.empty(n, np.float32)
        times = timed(lambda: np.matmul(weight, x, out=out))
    else:
        x = values(m, k)
        out = np.empty((m, n), np.float32)
        times = timed(lambda: np.matmul(x, weight.T, out=out))
    work = {"flop": 2 * m * k * n, **({"bytes": 4 * k * n} if m == 1 else {})}
    report({"kind": "figure", "topic": topic, "name": f"{m} x {k} x {n}", "variant": "f32", "work": work, "times": times})
