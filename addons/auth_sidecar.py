"""The sidecar inside mitmproxy's own tools: `mitmweb -s addons/auth_sidecar.py`, or `mitmdump -s`.

The configuration comes from `--set auth_sidecar_config=FILE` or the usual places.
"""

from sidecar.proxy.addon import AuthSidecar
from sidecar.run.service import from_file

addons = [AuthSidecar(from_file)]
