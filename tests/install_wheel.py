"""Install the built wheel into a new environment and use it from an empty directory.

python tests/install_wheel.py dist
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

USE = """
import importlib.resources as resources
import jax.numpy as jnp, manual_bp, verify, verify.interpreter
W, b = jnp.eye(2), jnp.zeros(2)
dW, db = manual_bp.manual_grads((W, b), jnp.ones((1, 2)), jnp.array([0]))
assert db.tolist() == [-0.5, 0.5], db
assert "site-packages" in manual_bp.__file__, manual_bp.__file__
for package in (manual_bp, verify):
    assert (resources.files(package) / "py.typed").is_file(), package
from verify import specs
assert specs.layers() and specs.losses()
"""


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("manual_bp-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "environment"
        venv.create(home, with_pip=True)
        python = home / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[verify]"], check=True)
        empty = Path(folder) / "empty"
        empty.mkdir()
        subprocess.run([python, "-c", USE], cwd=empty, check=True)
    print(f"{wheel.name} installs and imports in an empty directory")


if __name__ == "__main__":
    main()
