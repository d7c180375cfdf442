"""The README's two commands in what a container is: control groups without limits, a user that nobody knows, HOME=/, a
small /dev/shm. They run in a fresh clone of what is committed, with the packages that pip fetches into it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.hostile.box import REPO, STRANGER, World
from benchmarks.hostile.machine import V2_LIMITLESS

WORLD = World(f"{V2_LIMITLESS.mounts}\nmount -t tmpfs -o size=64m,mode=1777 none /dev/shm", user=STRANGER)
INHERITED = ("PATH", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def run(place: Path | None, targets: tuple[str, ...], args: str) -> int:
    """Run these targets of make; returns 0 where all went well.

    Args:
        place: a folder with 8 GB of room; None: the folder of temporary files.
        args: options of tune.search.

    Raises:
        Skipped: this machine can't make such a container.
    """
    with tempfile.TemporaryDirectory(prefix="container-", dir=place, ignore_cleanup_errors=True) as folder:
        clone, tmp = Path(folder, "clone"), Path(folder, "tmp")
        os.chmod(folder, 0o755)
        tmp.mkdir()
        tmp.chmod(0o1777)
        subprocess.run(["git", "clone", "--quiet", str(REPO), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "log", "-1", "--oneline"], check=True)
        subprocess.run(["chown", "--recursive", f"{STRANGER}:{STRANGER}", str(clone)], check=True)
        env = {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("PIP_")}
        env |= {"HOME": "/", "TMPDIR": str(tmp), "LANG": "C.UTF-8"}
        pip = Path("~/.config/pip/pip.conf").expanduser()
        if pip.exists():  # the stranger can't read it
            env["PIP_CONFIG_FILE"] = shutil.copy(pip, folder)
        for target in targets:
            start_s = time.monotonic()
            command = ["make", target, f"PYTHON={Path(sys.base_prefix, 'bin', 'python3')}"]
            command += [f"ARGS={args}"] if args and target == "search" else []
            code = subprocess.run(WORLD.wrapped(command), cwd=clone, env=env, stdin=subprocess.DEVNULL).returncode
            print(
                f"{' '.join(command)}: exit code {code} after {(time.monotonic() - start_s) / 60:.1f} min", flush=True
            )
            if code:
                return 1
    return 0
