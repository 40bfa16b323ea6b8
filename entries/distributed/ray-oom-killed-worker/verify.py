# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "ray>=2.9"]
# ///
"""Ray's memory monitor kills a worker because the node holds more host memory than its threshold.

To fill a machine would disturb whoever works on it, so the threshold is put below what the machine holds anyway. That
is the case of a node whose memory others use; what the tasks themselves take plays no part here.
"""

import pytest

pytestmark = [pytest.mark.requires(ray=">=2.9", os="linux"), pytest.mark.timeout(150)]

PROGRAM = """
import os
import time

import ray

options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
ray.init(num_cpus=1, object_store_memory=80 * 2**20, _temp_dir=os.path.abspath("ray"), **options)


@ray.remote(max_retries=RETRIES)
def shard(size):
    block = bytearray(size)
    time.sleep(2)
    return len(block)


try:
    assert ray.get(shard.remote(2**20)) == 2**20
    print("the shard is there")
finally:
    ray.shutdown()
"""
DISCREET = """
import pathlib, re, subprocess, sys

# The message lists the largest processes of the machine with their arguments, which are nobody else's business.
pathlib.Path("train.py").write_text(CODE)
ended = subprocess.run([sys.executable, "train.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
print(re.sub(r"(?m)^[0-9]+\\t[0-9.]+\\t.*\\n", "", ended.stdout))
sys.exit(ended.returncode)
"""
NODE = {
    "RAY_memory_usage_threshold": "0.005",
    "RAY_memory_monitor_refresh_ms": "100",
    "RAY_task_oom_retries": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(run_script, env=None, retries=0):
    code = PROGRAM.replace("RETRIES", str(retries))
    code = DISCREET.replace("CODE", repr(code))
    assert "the shard is there" in run_script(code, env={**NODE, **(env or {})}, timeout=120)


@pytest.fixture(params=["threshold-below-what-others-use"])
def config(request):
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script)


@pytest.mark.workaround("higher-threshold")
def test_higher_threshold(config, run_script):
    run(run_script, env={"RAY_memory_usage_threshold": "0.99"})


@pytest.mark.workaround("monitor-off")
def test_monitor_off(config, run_script):
    run(run_script, env={"RAY_memory_monitor_refresh_ms": "0"})


@pytest.mark.dead_end("old-switch")
def test_old_switch(config, run_script):
    run(run_script, env={"RAY_DISABLE_MEMORY_MONITOR": "1"})


@pytest.mark.dead_end("more-retries")
def test_more_retries(config, run_script):
    run(run_script, retries=2)
