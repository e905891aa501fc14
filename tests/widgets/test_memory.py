"""What an hour in the explorer takes of memory, in a process of its own: private memory, which kernels do not share.

Pages of libraries, 0.4 GB with torch's CUDA build, come on top once for all kernels.
"""

import json
import os
import subprocess
import sys

import pytest

SESSION = """
import json, random, time
import psutil
import zfkit
import zfkit.widgets.facts, zfkit.widgets.kept
from zfkit.topk import mined

load = zfkit.widgets.kept.Kept.load  # without the profiles that ship: counting takes memory, here of 150 pictures
zfkit.widgets.kept.Kept.load = lambda self, layer, name: None if name == "profile" else load(self, layer, name)
zfkit.widgets.facts.PROFILED = 150
model, photos = zfkit.load_model("zfnet64"), zfkit.load_images("photos", progress=False)
explorer = zfkit.explore(model, photos, mined(model, photos), save_to=None)
used = lambda: psutil.Process().memory_full_info().uss / 1e9
opening, most = used(), 0.0
explorer.go_live()
choose = random.Random(0)
for move in range(300):
    layer = model.conv_layers[move // 60]  # as somebody does who looks at one layer after the other
    maps = explorer.view.count(layer)
    changes = {"layer": layer, "channel": choose.randrange(maps), "rank": choose.randrange(9)}
    if move % 7 == 0:
        changes["rule"] = choose.choice(["deconvnet", "guided", "gradient"])
    explorer.set(**changes)
    assert explorer.wait(120)
    if move % 60 == 30:  # a rest, in which the layer is measured
        end = time.monotonic() + 600
        while layer not in explorer.view.facts.profiles and time.monotonic() < end:
            time.sleep(0.2)
        assert layer in explorer.view.facts.profiles
    most = max(most, used())
assert not explorer.errors, explorer.errors
print(json.dumps({"opening": opening, "most": most}))
explorer.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what was freed goes back to the system where glibc is")
def test_three_hundred_moves_stay_under_1_3_gigabytes():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SESSION]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout.splitlines()[-1])
    assert used["opening"] < 0.9 and used["most"] < 1.3, used
