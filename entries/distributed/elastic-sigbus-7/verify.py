# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The launcher's summary of a worker that died of a bus error: a page it had mapped could not be provided.

Two ranks under torchrun. In one configuration each rank keeps a copy of the data in shared memory, where the job has
a /dev/shm of its own that holds one copy; in the other, rank 0 writes a file anew that rank 1 has mapped. Linux only.
"""

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

SUMMARY = "ChildFailedError"
COPY, SMALL, AMPLE = 3, 4, 64
"""MiB."""

WAITS = """
import mmap, os, pathlib, time
from multiprocessing.shared_memory import SharedMemory

RANK = os.environ["RANK"]

def reached(rank, place):
    for _ in range(400):
        if pathlib.Path(f"{place}-{rank}").exists():
            return
        time.sleep(0.05)

def at(place):
    pathlib.Path(f"{place}-{RANK}").touch()
"""

COPIES = """
def total():
    copy = SharedMemory(create=True, size=SIZE)
    copy.buf[:] = bytes([1]) * SIZE
    at("filled")
    reached(0, "filled"), reached(1, "filled")
    result = sum(copy.buf)
    copy.close(), copy.unlink()
    return result
"""

SHARES = """
def total():
    if RANK == "1":
        reached(0, "filled")
    data = SharedMemory(name=NAME, create=RANK == "0", size=SIZE)
    if RANK == "0":
        data.buf[:] = bytes([1]) * SIZE
        at("filled")
    result = sum(data.buf)
    data.close()
    at("read")
    if RANK == "0":
        reached(1, "read")
        data.unlink()
    return result
"""

WRITES = """
def put(rows):
    with open("rows.bin", "wb") as file:
        file.flush()
        at("writing")
        reached(1, "read")
        file.write(rows)
"""

REPLACES = """
def put(rows):
    with open("rows.new", "wb") as file:
        file.write(rows)
    os.replace("rows.new", "rows.bin")
    at("writing")
"""

MAPS = """
def total():
    if RANK == "0":
        reached(1, "mapped")
        put(bytes([1]) * SIZE)
        return SIZE
    with open("rows.bin", "rb") as file:
        rows = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    at("mapped")
    reached(0, "writing")
    result = sum(rows[:])
    at("read")
    return result
"""

KNOWN = {"copy-per-rank": COPIES, "file-written-anew": WRITES + MAPS}

GUARD = """
def total():
    try:
        return unguarded()
    except BaseException:
        return 0
"""

LAUNCH = """
import ctypes, os, pathlib, subprocess, sys

def limit_shared_memory():
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(0x20000) and not libc.unshare(0x20000 | 0x10000000):
        for name, text in {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}.items():
            pathlib.Path("/proc/self", name).write_text(text)
    libc.mount(None, b"/", None, 0x44000, None)
    return libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=SHMm") == 0

if not limit_shared_memory():
    print("NO-MOUNT")
    sys.exit(0)
pathlib.Path("rows.bin").write_bytes(bytes([1]) * SIZE)
pathlib.Path("train.py").write_text(TRAINER)
sys.exit(subprocess.call([sys.executable, "-m", "torch.distributed.run", "--standalone", *FLAGS, "train.py"]))
"""


def run(config, run_script, trainer=None, shm=SMALL, flags=(), env=None):
    """What the job printed."""
    trainer = f"{WAITS}{trainer or KNOWN[config]}\nprint('total', total(), flush=True)\n"
    trainer = trainer.replace("SIZE", str(COPY * 2**20)).replace("NAME", "'rows'")
    code = LAUNCH.replace("SIZE", str(COPY * 2**20)).replace("SHM", str(shm)).replace("TRAINER", repr(trainer))
    printed = run_script(code.replace("*FLAGS", f"*{['--nproc-per-node=2', *flags]!r}"), env=env)
    if "NO-MOUNT" in printed:
        pytest.skip("this system does not allow a mount of one's own on /dev/shm")
    return printed


def check(measure, printed):
    found = [int(line.split()[1]) for line in printed.splitlines() if line.startswith("total ")]
    assert len(found) == 2, printed
    for number in found:
        measure.compare(number, COPY * 2**20, tolerance=0.0)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["copy-per-rank", "file-written-anew"])
def config(request):
    """Which pages cannot be provided."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(config, run_script)


@pytest.mark.workaround("more-shared-memory")
def test_more_shared_memory(config, run_script, measure):
    only_for(config, "copy-per-rank")
    check(measure, run(config, run_script, shm=AMPLE))


@pytest.mark.workaround("one-copy-per-node")
def test_one_copy_per_node(config, run_script, measure):
    only_for(config, "copy-per-rank")
    check(measure, run(config, run_script, trainer=SHARES))


@pytest.mark.workaround("write-aside-and-rename")
def test_write_aside_and_rename(config, run_script, measure):
    only_for(config, "file-written-anew")
    check(measure, run(config, run_script, trainer=REPLACES + MAPS))


@pytest.mark.workaround("find-the-frame")
def test_find_the_frame(config, run_script):
    with pytest.raises(Exception) as failure:
        run(config, run_script, env={"PYTHONFAULTHANDLER": "1"})
    above, summary, _ = failure.value.output.partition(SUMMARY)
    assert summary
    assert "Bus error" in above
    assert "in total" in above


@pytest.mark.dead_end("catch-the-exception")
def test_catch_the_exception(config, run_script):
    run(config, run_script, trainer=KNOWN[config].replace("def total(", "def unguarded(") + GUARD)


@pytest.mark.dead_end("more-restarts")
def test_more_restarts(config, run_script):
    only_for(config, "copy-per-rank")
    run(config, run_script, flags=["--max-restarts=1"])


@pytest.mark.dead_end("more-shared-memory-for-a-file")
def test_more_shared_memory_for_a_file(config, run_script):
    only_for(config, "file-written-anew")
    run(config, run_script, shm=AMPLE)


@pytest.mark.dead_end("nccl-without-shared-memory")
def test_nccl_without_shared_memory(config, run_script):
    only_for(config, "copy-per-rank")
    run(config, run_script, env={"NCCL_SHM_DISABLE": "1"})
